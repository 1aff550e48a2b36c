"""Triton's `onnxruntime` backend in Python, for a Triton that comes without the native one.

Triton takes it for every model whose config says `backend: "onnxruntime"`, because it lies as `onnxruntime/model.py`
in the backend directory (Triton's documentation, "Python-based Backends"). Each model instance is a process of its
own. The instance group says where it runs: `KIND_CPU`, or `KIND_GPU` with a device; Triton itself decides
`KIND_AUTO`. Of the config's `parameters` it reads those of the native backend that set threads:
`intra_op_thread_count`, `inter_op_thread_count` and `execution_mode`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # Triton puts it on the path
from numpy.typing import NDArray

MODEL_FILE = "model.onnx"  # where the config names none
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

Tensors = dict[str, NDArray[Any]]


class TritonPythonModel:
    """One instance of one version of a model; Triton calls its methods."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the model where the instance group wants it.

        Args:
            args: Strings from Triton, among them `model_config` (JSON), `model_repository` (the model's directory),
                `model_version`, `model_instance_kind` (`CPU` or `GPU`) and `model_instance_device_id`.

        Raises:
            TritonModelException: numpy is too new, ONNX Runtime cannot use the GPU that the config asks for, or
                the config names tensors that the graph does not have.
            Exception: ONNX Runtime cannot read the file. Triton reports it and does not serve this version.
        """
        if not np.__version__.startswith("1."):
            raise pb_utils.TritonModelException(
                f"numpy {np.__version__} is on the path, and this Triton's Python backend silently garbles the tensors "
                "of numpy 2: start Triton by deploy/triton/serve.py, which takes the numpy that was installed for it"
            )
        _end_with_triton()
        onnxruntime.disable_telemetry_events()
        config = json.loads(args["model_config"])
        label = f"{args['model_name']} version {args['model_version']}"
        file = Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or MODEL_FILE)
        self._device, self._device_id, providers = "cpu", 0, [CPU]
        if args["model_instance_kind"] == "GPU":
            self._device, self._device_id = "cuda", int(args["model_instance_device_id"])
            providers = [(CUDA, {"device_id": self._device_id}), CPU]
            onnxruntime.preload_dlls()  # CUDA's libraries, where they are Python packages
        self._session = onnxruntime.InferenceSession(file, _options(config["parameters"]), providers)
        obtained = self._session.get_providers()
        if self._device == "cuda" and CUDA not in obtained:  # ONNX Runtime falls back to the CPU in silence
            raise pb_utils.TritonModelException(
                f"{label} is to run on GPU {self._device_id}, and ONNX Runtime got {obtained} only: install "
                "onnxruntime-gpu and the CUDA libraries that it wants, or set the instance group to KIND_CPU"
            )
        self._inputs = [each.name for each in self._session.get_inputs()]
        outputs = {each.name for each in self._session.get_outputs()}
        missing = {each["name"] for each in config["output"]} - outputs
        missing |= {each["name"] for each in config["input"]} ^ set(self._inputs)
        if missing:
            raise pb_utils.TritonModelException(f"{label}: config and graph disagree on {', '.join(sorted(missing))}")
        pb_utils.Logger.log_info(f"{label} runs by {', '.join(obtained)}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests that Triton's dynamic batcher put together: one response each, in their order.

        They run as one batch. If that fails, each of them runs alone, so that only the guilty ones fail.
        """
        responses: list[Any] = [None] * len(requests)
        wanted = [request.requested_output_names() for request in requests]
        batch: dict[int, Tensors] = {}  # inputs, by the request's place
        for place, request in enumerate(requests):
            if request.is_cancelled():
                error = pb_utils.TritonError("the client has cancelled it", pb_utils.TritonError.CANCELLED)
                responses[place] = pb_utils.InferenceResponse(error=error)
            else:
                batch[place] = {each.name(): each.as_numpy() for each in request.inputs()}
        for place, answer in self._answers(batch, wanted):
            responses[place] = _response(answer, wanted[place])
        return responses

    def _answers(self, batch: dict[int, Tensors], wanted: list[list[str]]) -> Iterable[tuple[int, Tensors | str]]:
        """For every place of a batch its outputs, or why there are none."""
        if not batch:
            return []
        names = sorted({name for place in batch for name in wanted[place]})
        arrays = {name: [tensors[name] for tensors in batch.values()] for name in self._inputs}
        try:
            merged = self._run({name: _merge(each) for name, each in arrays.items()}, names)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no narrower class
            if len(batch) > 1:
                return [answer for place in batch for answer in self._answers({place: batch[place]}, wanted)]
            return [(place, str(error)) for place in batch]
        if len(batch) == 1:  # perhaps without a batch dimension
            return [(place, merged) for place in batch]
        ends = np.cumsum([len(array) for array in arrays[self._inputs[0]]])[:-1]
        rows = {name: np.split(array, ends) for name, array in merged.items()}
        return [(place, {name: rows[name][index] for name in names}) for index, place in enumerate(batch)]

    def _run(self, inputs: Tensors, outputs: list[str]) -> Tensors:
        """Run the graph; on a GPU its outputs stay there until all are computed."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            binding.bind_output(name, self._device, self._device_id)
        self._session.run_with_iobinding(binding)
        return dict(zip(outputs, binding.copy_outputs_to_cpu(), strict=True))


def _end_with_triton() -> None:
    """End this process when Triton was killed: its stub may wait for ever for a lock that nobody gives back then."""
    triton = os.getppid()

    def watch() -> None:
        while os.getppid() == triton:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-triton", daemon=True).start()


def _options(parameters: Mapping[str, Mapping[str, str]]) -> onnxruntime.SessionOptions:
    def number(key: str) -> int:
        return int(parameters.get(key, {}).get("string_value") or 0)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = number("intra_op_thread_count")  # 0: one per core
    options.inter_op_num_threads = number("inter_op_thread_count")
    if number("execution_mode") == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others
    return options


def _merge(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)


def _response(answer: Tensors | str, wanted: list[str]) -> Any:
    if isinstance(answer, str):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(answer))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, answer[name]) for name in wanted])
