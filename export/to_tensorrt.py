"""TensorRT plans, from the ONNX files of each precision. Not yet run: no GPU was at hand. For TensorRT 10 and 11.

The network is strongly typed: TensorRT computes in the types that the graph states and chooses nothing by itself. So a
plan's precision is its ONNX file's, which was verified before: float32 (without TF32, which would be another
precision), half (`export.half`), or explicit quantization (`export.quantize.TENSORRT`). TensorRT needs the cast of
`image` to be the first thing that happens to it (https://github.com/NVIDIA/TensorRT/issues/3985); `export.to_onnx`
puts it there.

A plan is machine code for one version of TensorRT on one kind of GPU, so it is built, verified and published on the
machine that will run it, and the spec says which (`service.spec.TensorRT`). PyTorch, whose CUDA build manages the GPU's
memory here, is imported only by what needs it: whoever handles ONNX files need not wait for it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import TensorRTError
from service.spec import ImageSpec, TensorRT

BATCH = (1, 16, 64)  # images: the fewest, those that the plan is tuned for, and the most
WORKSPACE = 4 << 30  # bytes of GPU memory that a layer's scratch space may take
OLDEST = 10  # the first major version that takes uint8 inputs and int64 indices in strongly typed networks

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def shapes(batch: tuple[int, int, int], image: ImageSpec) -> Shapes:
    """The profile of the input `image`: its smallest, best and largest shape.

    Args:
        batch: Images: the fewest, the best number, and the most.
        image: The image contract.

    Raises:
        TensorRTError: The numbers do not rise from one.
    """
    fewest, best, most = batch
    if not 1 <= fewest <= best <= most:
        raise TensorRTError(f"a plan's batch sizes must rise, as 1,16,64 do: not {fewest},{best},{most}")
    each = (image.height, image.width, image.channels)
    return (fewest, *each), (best, *each), (most, *each)


def timing_cache() -> Path:
    """Where measured kernel times are kept, so that the next build of a similar network is quick."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fovea" / "tensorrt-timing.cache"


def machine() -> tuple[str, str]:
    """The version of TensorRT and the compute capability of the GPU that are here.

    Raises:
        TensorRTError: One of them is missing; the message says how to get it.
    """
    import torch

    version = str(_tensorrt().__version__)
    if not torch.cuda.is_available():
        raise TensorRTError(
            "TensorRT builds a plan for the GPU that it finds, and PyTorch finds none: publish on the machine that "
            "will serve, with its NVIDIA driver and PyTorch's CUDA build (https://pytorch.org/get-started/locally)"
        )
    major, minor = torch.cuda.get_device_capability()
    return version, f"{major}.{minor}"


def require(built_with: TensorRT) -> None:
    """Make sure that a plan can run here.

    Raises:
        TensorRTError: It was built for another TensorRT or GPU, or there is none here.
    """
    if problem := built_with.mismatch(*machine()):
        raise TensorRTError(problem)


def build(
    path: Path,
    plan: Path,
    image: ImageSpec,
    batch: tuple[int, int, int] = BATCH,
    workspace: int = WORKSPACE,
    cache: Path | None = None,
) -> TensorRT:
    """Build a plan from an ONNX file.

    Args:
        path: The ONNX file, in the precision that the plan is to have.
        plan: Where the plan goes.
        image: The image contract.
        batch: Images: the fewest, those that it is tuned for, and the most.
        workspace: Bytes of GPU memory for scratch space at most.
        cache: File of measured kernel times, read and written; None: `timing_cache()`.

    Returns:
        What it was built with, for the spec.

    Raises:
        TensorRTError: TensorRT or a GPU is missing, or TensorRT refuses the network; the message holds its words.
    """
    smallest, best, largest = shapes(batch, image)
    version, capability = machine()
    trt = _tensorrt()
    cache = cache or timing_cache()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise TensorRTError(f"TensorRT {version} cannot read {path.name}: {said}")

    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", smallest, best, largest)
    config.add_optimization_profile(profile)
    # What was measured elsewhere is no use here: a cache of another machine is refused, and a new one begun.
    times = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
    if not config.set_timing_cache(times, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise TensorRTError(f"TensorRT {version} built no plan from {path.name}; its log above says why")
    plan.write_bytes(bytes(serialized))
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return TensorRT(version=version, compute_capability=capability, batch=batch)


class Plan:
    """A plan, loaded; runs like an ONNX Runtime session.

    Args:
        path: Of the plan.

    Raises:
        TensorRTError: TensorRT or a GPU is missing, or the plan is for others.
    """

    def __init__(self, path: Path) -> None:
        version, capability = machine()
        trt = _tensorrt()
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))  # has to outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise TensorRTError(
                f"{path.name} was not built for TensorRT {version} on a GPU of compute capability {capability}: "
                "publish it again on this machine"
            )
        self._context = self._engine.create_execution_context()
        self._most = int(self._engine.get_tensor_profile_shape("image", 0)[2][0])
        self._names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Run a batch of any size, in as many parts as the plan's profile asks for.

        Args:
            names: The outputs wanted.
            feeds: `image`: uint8 `[N, H, W, C]`.

        Returns:
            The outputs, `[N, ...]`, in the order of `names`.

        Raises:
            TensorRTError: TensorRT could not run it.
        """
        images = feeds["image"]
        parts = [self._run(images[start : start + self._most]) for start in range(0, len(images), self._most)]
        return [np.concatenate([part[name] for part in parts]) for name in names]

    def _run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        import torch

        tensors = {"image": torch.from_numpy(np.ascontiguousarray(images)).cuda()}
        self._context.set_input_shape("image", images.shape)
        for name in self._names:
            if name != "image":
                shape = tuple(self._context.get_tensor_shape(name))
                tensors[name] = torch.empty(shape, dtype=torch.float32, device="cuda")
            self._context.set_tensor_address(name, tensors[name].data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise TensorRTError("TensorRT could not run the plan; its log above says why")
        stream.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items() if name != "image"}


def _tensorrt() -> Any:
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise TensorRTError(
            "a plan needs TensorRT, which is not installed: on a machine with an NVIDIA GPU run `pip install "
            "tensorrt` and publish there; or publish ONNX and let Triton build the plan (--tensorrt-accelerator)"
        ) from error
    if int(str(trt.__version__).split(".")[0]) < OLDEST:
        raise TensorRTError(f"TensorRT {trt.__version__} is too old: version {OLDEST} or newer is needed")
    return trt


def _strongly_typed(trt: Any) -> int:
    """Flags of a strongly typed network; from version 11 on there is no other kind."""
    if int(str(trt.__version__).split(".")[0]) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
