"""What Triton is told about a model: `config.pbtxt` as a message, from the specs of its versions.

It serves without editing: requests are merged up to the largest batch, every instance is warm before its first
request, and a model runs on a GPU where there is one. What a publisher wants otherwise is a `Deployment`. It travels in
the config's `parameters` under `DEPLOYMENT_KEY`, so that the next publisher of the model finds it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tritonclient.grpc import model_config_pb2 as triton

from export import replay, to_tensorrt
from export.errors import RepositoryError
from service.spec import ModelSpec, spec_parameters

KEEP_VERSIONS = 2  # the new one is verified while the old one still serves
DEPLOYMENT_KEY = "fovea-deployment"  # not `fovea.…`: that would be the spec of a version
INPUT = "image"

# Multiply-accumulates per image below which a batch of that size still answers in tens of milliseconds on two cores.
BATCH_SIZES = ((50_000_000, 64), (1_000_000_000, 16))
LARGEST_NETS_BATCH = 8

Batch = tuple[int, int, int]  # images: the fewest, those that TensorRT is tuned for, and the most
InstanceKind = Literal["auto", "cpu", "gpu"]


class Deployment(BaseModel):
    """What a publisher wants of Triton; None leaves it to the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instances: int | None = Field(default=None, ge=1)  # per device; default: 1
    instance_kind: InstanceKind | None = None  # default: see `_kind`
    max_batch_size: int | None = Field(default=None, ge=1)  # default: by the network's multiply-accumulates
    max_queue_delay_us: int | None = Field(default=None, ge=0)  # default: 0, a batch is what waits
    accelerator: Batch | None = None  # have Triton's ONNX Runtime backend use TensorRT, for batches of these sizes
    fresh: bool = Field(default=False, exclude=True)  # forget what earlier versions were published with

    def over(self, earlier: Deployment) -> Deployment:
        """This, with what it leaves open as it was in an earlier one."""
        return earlier.model_copy(update={name: value for name, value in self if value is not None})


def max_batch_size(macs: int) -> int:
    """The largest batch worth merging for a network of that many multiply-accumulates per image."""
    return next((size for limit, size in BATCH_SIZES if macs < limit), LARGEST_NETS_BATCH)


def check(deployment: Deployment, plan: Batch | None = None) -> None:
    """Make sure that a deployment does not contradict itself.

    Args:
        deployment: With what is kept from earlier versions.
        plan: Batch sizes of a TensorRT plan; None: the model is ONNX.

    Raises:
        RepositoryError: It does; the message says what to leave out.
    """
    if plan is not None and deployment.accelerator is not None:
        raise RepositoryError("a plan needs no --tensorrt-accelerator: leave it out, or pass --forget-overrides")
    batch = plan or deployment.accelerator
    if batch is None:
        return
    if deployment.instance_kind == "cpu":
        raise RepositoryError("TensorRT runs on GPUs only: leave out --instance-kind cpu, or pass --forget-overrides")
    fewest, _, most = batch
    if deployment.max_batch_size is not None and not fewest <= deployment.max_batch_size <= most:
        raise RepositoryError(
            f"TensorRT takes {fewest} to {most} images here, and the largest batch is to be "
            f"{deployment.max_batch_size}: change --max-batch-size or --batch-sizes"
        )


def build_config(specs: Mapping[str, ModelSpec], deployment: Deployment | None = None) -> triton.ModelConfig:
    """The config of a model from the specs of its versions. The same arguments give the same message.

    Args:
        specs: By version, at least one; all of one name, of the same shapes, and either plans or ONNX.
        deployment: What is wanted otherwise than by default.

    Raises:
        RepositoryError: The deployment contradicts itself or the specs.
    """
    deployment = deployment or Deployment()
    for each in specs.values():
        check(deployment, each.tensorrt.batch if each.tensorrt is not None else None)
    spec = max(specs.values(), key=lambda each: int(each.version))
    config = triton.ModelConfig(
        name=spec.name,
        backend="onnxruntime" if spec.tensorrt is None else "tensorrt",
        default_model_filename=replay.model_file(spec),
        max_batch_size=min(_largest_batch(each, deployment) for each in specs.values()),
    )
    image = [spec.image.height, spec.image.width, spec.image.channels]
    config.input.add(name=INPUT, data_type=triton.TYPE_UINT8, dims=image)
    for name, shape in spec.output_shapes.items():
        config.output.add(name=name, data_type=triton.TYPE_FP32, dims=shape)
    # No preferred sizes: where they are given, Triton merges up to the largest of them and no further.
    config.dynamic_batching.max_queue_delay_microseconds = deployment.max_queue_delay_us or 0
    config.instance_group.add(count=deployment.instances or 1, kind=_kind(spec, deployment))
    if deployment.accelerator is not None:
        _accelerate(config, spec, deployment.accelerator)
    fewest = max(_fewest(each, deployment) for each in specs.values())
    for size in sorted({fewest, config.max_batch_size}):
        _warm_up(config, size)
    config.version_policy.latest.num_versions = KEEP_VERSIONS
    for key, text in spec_parameters(specs).items():
        config.parameters[key].string_value = text
    wanted = deployment.model_dump_json(exclude_none=True)
    if wanted != "{}":
        config.parameters[DEPLOYMENT_KEY].string_value = wanted
    return config


def deployment_of(config: triton.ModelConfig) -> Deployment:
    """What the publishers of a model wanted, from its config.

    Raises:
        RepositoryError: Somebody changed it to what cannot be.
    """
    if DEPLOYMENT_KEY not in config.parameters:
        return Deployment()
    try:
        return Deployment.model_validate_json(config.parameters[DEPLOYMENT_KEY].string_value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RepositoryError(
            f"{config.name}: the parameter {DEPLOYMENT_KEY} of its config is broken ({first['msg']}): "
            "pass --forget-overrides"
        ) from error


def _largest_batch(spec: ModelSpec, deployment: Deployment) -> int:
    if deployment.max_batch_size is not None:
        return deployment.max_batch_size
    if spec.tensorrt is not None:
        return spec.tensorrt.batch[2]
    return max_batch_size(spec.macs) if deployment.accelerator is None else deployment.accelerator[2]


def _fewest(spec: ModelSpec, deployment: Deployment) -> int:
    """The smallest batch that can run."""
    batch = deployment.accelerator if spec.tensorrt is None else spec.tensorrt.batch
    return 1 if batch is None else batch[0]


def _kind(spec: ModelSpec, deployment: Deployment) -> triton.ModelInstanceGroup.Kind:
    """A GPU where there is one; but TensorRT needs one, and int8 in the formats that suit CPUs gains nothing on one."""
    group = triton.ModelInstanceGroup
    if deployment.instance_kind is not None:
        return {"auto": group.KIND_AUTO, "cpu": group.KIND_CPU, "gpu": group.KIND_GPU}[deployment.instance_kind]
    if deployment.accelerator is not None or spec.tensorrt is not None:
        return group.KIND_GPU
    return group.KIND_CPU if spec.precision == "int8" else group.KIND_AUTO


def _warm_up(config: triton.ModelConfig, size: int) -> None:
    """Have every instance run one batch of that size, of black images, before it counts as ready."""
    shape = config.input[0]
    image = config.model_warmup.add(name=f"batch-{size}", batch_size=size).inputs[INPUT]
    image.data_type = shape.data_type
    image.dims.extend(shape.dims)
    image.zero_data = True


def _accelerate(config: triton.ModelConfig, spec: ModelSpec, batch: Batch) -> None:
    """Ask for TensorRT in the words of Triton's ONNX Runtime backend (its README, "TensorRT optimization")."""
    accelerators = config.optimization.execution_accelerators
    parameters = accelerators.gpu_execution_accelerator.add(name="tensorrt").parameters
    parameters["precision_mode"] = spec.precision.upper()
    parameters["max_workspace_size_bytes"] = str(to_tensorrt.WORKSPACE)
    parameters["trt_timing_cache_enable"] = "1"
    for name, shape in zip(("min", "opt", "max"), to_tensorrt.shapes(batch, spec.image), strict=True):
        parameters[f"trt_profile_{name}_shapes"] = f"{INPUT}:" + "x".join(map(str, shape))
