"""The decode model: encoded images in, a network's outputs out, in one call.

The gateway sends it files instead of pixels (`python -m service serve --decode-on triton`). It prepares them as the
gateway would, by the gateway's own code, and has the network that the request names answer, through Triton, whose
batcher merges what several requests bring. On a GPU instance nvJPEG decodes what it can (`nvjpeg.py`).

A request carries the parameters `model`, `version`, `image` (how that version wants images prepared, JSON) and
`max_pixels`. The gateway has checked headers and sizes. The output `error` `[N, 1]` is empty for an image that was
decoded, and otherwise a code and a message for the client; the other outputs have rows for the decoded images alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton puts it on the path
from numpy.typing import NDArray

from service.errors import BackendFailed, FoveaError
from service.preprocess import Limits, Preprocessor

MAX_BYTES = 2**31  # of one file; the gateway has its own limit


class TritonPythonModel:
    """One instance; Triton calls its methods."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the threads that decode.

        Args:
            args: Strings from Triton, among them `model_instance_kind` (`CPU` or `GPU`) and `model_instance_device_id`.

        Raises:
            Exception: The instance is to run on a GPU, and what `nvjpeg.py` needs is not there.
        """
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")
        self._gpu = None
        if args["model_instance_kind"] == "GPU":
            from nvjpeg import NvJpeg

            self._gpu = NvJpeg(int(args["model_instance_device_id"]))

    def finalize(self) -> None:
        """End them."""
        self._threads.shutdown()

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests side by side: one response each, in their order."""
        return list(await asyncio.gather(*map(self._answered, requests)))

    async def _answered(self, request: Any) -> Any:
        try:
            return await self._answer(request)
        except Exception:  # noqa: BLE001 - whatever one request meets with, the others get their answers
            pb_utils.Logger.log_error(traceback.format_exc())
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("the decode model failed"))

    async def _answer(self, request: Any) -> Any:
        parameters = json.loads(request.parameters())
        (encoded,) = request.inputs()
        found = await self._prepared(encoded.as_numpy().ravel().tolist(), parameters)
        if request.is_cancelled():
            error = pb_utils.TritonError("the client has cancelled it", pb_utils.TritonError.CANCELLED)
            return pb_utils.InferenceResponse(error=error)
        errors = [[each if isinstance(each, str) else ""] for each in found]
        tensors = [pb_utils.Tensor("error", np.array(errors, np.object_))]
        images = [each for each in found if not isinstance(each, str)]
        if images:
            network = pb_utils.InferenceRequest(
                model_name=parameters["model"],
                model_version=int(parameters["version"]),
                requested_output_names=[name for name in request.requested_output_names() if name != "error"],
                inputs=[
                    pb_utils.Tensor.from_dlpack("image", self._gpu.stack(images))
                    if self._gpu
                    else pb_utils.Tensor("image", np.stack(images))
                ],
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            )
            answer = await network.async_exec()
            if answer.has_error():
                return pb_utils.InferenceResponse(error=answer.error())
            tensors += answer.output_tensors()
        return pb_utils.InferenceResponse(tensors)

    async def _prepared(self, files: list[bytes], parameters: Mapping[str, str]) -> list[Any]:
        """For each file the network's pixels `[H, W, C]`, or the code and the message of what is wrong with it."""
        image, preprocess = _preprocessor(parameters["image"], int(parameters["max_pixels"]))
        found = dict(self._gpu.prepared(files, image)) if self._gpu else {}
        rest = [place for place in range(len(files)) if place not in found]
        loop = asyncio.get_running_loop()
        decoding = (loop.run_in_executor(self._threads, _decoded, preprocess, files[place]) for place in rest)
        found.update(zip(rest, await asyncio.gather(*decoding), strict=True))
        return [found[place] for place in range(len(files))]


@lru_cache(64)
def _preprocessor(image: str, max_pixels: int) -> tuple[SimpleNamespace, Preprocessor]:
    """How a version wants images prepared, and what does it on a CPU."""
    spec = SimpleNamespace(**json.loads(image))
    spec.background = tuple(spec.background)
    return spec, Preprocessor(spec, Limits(MAX_BYTES, max_pixels))


def _decoded(preprocess: Preprocessor, file: bytes) -> NDArray[np.uint8] | str:
    try:
        return preprocess(file)
    except FoveaError as error:
        return f"{error.code} {error.message}"
    except Exception:  # noqa: BLE001 - a bug of ours; the other images get their answers
        pb_utils.Logger.log_error(traceback.format_exc())
        return BackendFailed.code
