"""A real Triton serves what Fovea publishes, by the Python-based `onnxruntime` backend of `deploy/triton`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from service.spec import CONFIG_NAME, OUTPUTS, read_config, specs_from_config
from tests.faults import publish_poisonable
from tests.models import publish_tiny, tiny_logits
from tests.server import ROOT, picture
from tests.triton import SCRIPTS, Triton, needs_triton

DIGITS = "lenet5-digits"
MERGED = 4  # requests that the `glass` model waits for

Pixels = NDArray[np.uint8]


class Client:
    """What a test asks of a Triton over gRPC."""

    def __init__(self, triton: Triton) -> None:
        self.grpc = triton_grpc.InferenceServerClient(triton.grpc_url)

    def infer(
        self, model: str, images: Pixels, outputs: tuple[str, ...] = OUTPUTS, version: str = "", seconds: float = 20
    ) -> dict[str, NDArray[Any]]:
        """The tensors of an answer, all that it has."""
        image = triton_grpc.InferInput("image", list(images.shape), "UINT8")
        image.set_data_from_numpy(images)
        wanted = [triton_grpc.InferRequestedOutput(name) for name in outputs]
        answer = self.grpc.infer(model, [image], version, wanted, client_timeout=seconds)
        return {each.name: answer.as_numpy(each.name) for each in answer.get_response().outputs}

    def counts(self, model: str) -> tuple[int, int]:
        """Images inferred and executions.

        Triton counts a request after answering it, and as a success too if a Python backend answers with an error.
        """
        (stats,) = self.grpc.get_inference_statistics(model).model_stats
        return stats.inference_count, stats.execution_count


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Serves `tiny`, `slow`, `glass` (waits until it can merge, and breaks on white), LeNet-5 and a `broken` one."""
    models = tmp_path_factory.mktemp("models")
    publish_tiny(models)
    publish_tiny(models, "slow", work=100)
    publish_poisonable(models, "glass")
    glass = text_format.Parse((models / "glass" / CONFIG_NAME).read_text(), ModelConfig())
    glass.dynamic_batching.preferred_batch_size.append(MERGED)
    glass.dynamic_batching.max_queue_delay_microseconds = 5_000_000
    (models / "glass" / CONFIG_NAME).write_text(text_format.MessageToString(glass))
    shutil.copytree(ROOT / "model_repository" / DIGITS, models / DIGITS)
    publish_tiny(models, "broken")
    (models / "broken" / "1" / "model.onnx").write_bytes(b"no graph")
    with Triton(models, tmp_path_factory.mktemp("triton")).start() as running:
        yield running


@pytest.fixture
def client(triton: Triton) -> Iterator[Client]:
    client = Client(triton)
    yield client
    client.grpc.close()


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


@needs_triton
@pytest.mark.parametrize(("model", "shape"), [("tiny", (8, 8, 3)), (DIGITS, (32, 32, 1))])
def test_tensors_are_those_of_onnx_runtime_to_the_bit(
    triton: Triton, client: Client, model: str, shape: tuple[int, ...]
) -> None:
    session = onnxruntime.InferenceSession(triton.repository / model / "1" / "model.onnx")
    for count in (1, 2, 7, 64):
        batch = images(count, shape, seed=count)
        answer = client.infer(model, batch)
        for name, expected in zip(OUTPUTS, session.run(OUTPUTS, {"image": batch}), strict=True):
            np.testing.assert_array_equal(answer[name], expected, err_msg=f"{name} of {count}")


@needs_triton
def test_concurrent_requests_are_merged_and_each_gets_its_own_rows(triton: Triton, client: Client) -> None:
    batches = [images(count % 3 + 1, (8, 8, 3), seed=count) for count in range(16)]
    wanted = [OUTPUTS[: number % 4 + 1] for number in range(16)]
    before = client.counts("slow")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda batch, names: client.infer("slow", batch, names), batches, wanted))
    triton.wait_until(lambda: client.counts("slow")[0] - before[0] == sum(map(len, batches)))
    assert (
        client.counts("slow")[1] - before[1] <= 4
    )  # the first request, the ones that came while it ran, and some slack
    for batch, names, answer in zip(batches, wanted, answers, strict=True):
        assert set(answer) == set(names)  # no output travels that was not asked for
        np.testing.assert_allclose(answer["logits"], tiny_logits(batch), atol=1e-5)
        if "activations" in answer:
            means = answer["activations"].mean(axis=(2, 3))
            np.testing.assert_allclose(answer["features"], means, atol=1e-6)


@needs_triton
def test_of_a_merged_batch_only_the_guilty_request_fails(triton: Triton, client: Client) -> None:
    batches = [picture(1)[None], np.full((1, 8, 8, 3), 255, np.uint8), picture(2)[None], picture(3)[None]]
    before = client.counts("glass")

    def ask(batch: Pixels) -> dict[str, NDArray[Any]] | str:
        try:
            return client.infer("glass", batch, ("logits",))
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(MERGED) as pool:
        answers = list(pool.map(ask, batches))
    triton.wait_until(lambda: client.counts("glass")[0] - before[0] == MERGED)
    assert client.counts("glass")[1] - before[1] == 1  # they were merged
    assert isinstance(answers.pop(1), str)
    del batches[1]
    for batch, answer in zip(batches, answers, strict=True):
        assert isinstance(answer, dict)
        np.testing.assert_allclose(answer["logits"], tiny_logits(batch), atol=1e-5)


@needs_triton
@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (65, 8, 8, 3), (8, 8, 3)])
def test_wrong_shapes_are_refused_and_the_next_request_is_answered(client: Client, shape: tuple[int, ...]) -> None:
    with pytest.raises(InferenceServerException):
        client.infer("tiny", np.zeros(shape, np.uint8))
    np.testing.assert_allclose(
        client.infer("tiny", picture(5)[None])["logits"], tiny_logits(picture(5)[None]), atol=1e-5
    )


@needs_triton
def test_a_broken_model_leaves_the_others_serving_and_loads_once_it_is_mended(triton: Triton, client: Client) -> None:
    assert all(triton.ready(model) for model in ("tiny", "slow", "glass", DIGITS))
    assert not triton.ready("broken")
    assert not triton.ready()
    assert triton.load("broken").status_code == 400
    shutil.copy(triton.repository / "tiny" / "1" / "model.onnx", triton.repository / "broken" / "1")
    assert triton.load("broken").status_code == 200
    np.testing.assert_allclose(
        client.infer("broken", picture(7)[None])["logits"], tiny_logits(picture(7)[None]), atol=1e-5
    )
    assert triton.ready()


@needs_triton
def test_a_new_version_is_served_beside_the_old_one_after_one_load(triton: Triton, client: Client) -> None:
    publish_tiny(triton.repository, "growing")
    assert triton.load("growing").status_code == 200
    publish_tiny(triton.repository, "growing", seed=1)
    assert triton.load("growing").status_code == 200
    batch = images(3, (8, 8, 3))
    for version, seed in (("1", 0), ("2", 1), ("", 1)):
        np.testing.assert_allclose(
            client.infer("growing", batch, version=version)["logits"], tiny_logits(batch, seed=seed), atol=1e-5
        )
    published = read_config(triton.repository / "growing" / CONFIG_NAME).specs
    assert specs_from_config(client.grpc.get_model_config("growing").config) == published
    assert set(published) == {"1", "2"}


@needs_triton
def test_it_freezes_dies_and_comes_back_on_the_same_ports(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "models")
    with Triton(tmp_path / "models", tmp_path).start() as own:
        client = Client(own)
        batch = picture(9)[None]
        own.stop()
        with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
            client.infer("tiny", batch, seconds=0.5)
        own.resume()
        np.testing.assert_allclose(client.infer("tiny", batch)["logits"], tiny_logits(batch), atol=1e-5)
        client.grpc.close()
        own.kill()
        own.restart()
        client = Client(own)
        np.testing.assert_allclose(client.infer("tiny", batch)["logits"], tiny_logits(batch), atol=1e-5)
        client.grpc.close()
        assert own.terminate() == 0


@needs_triton
def test_a_gpu_that_cannot_be_had_is_an_error_and_not_a_cpu(triton: Triton) -> None:
    """Without a GPU Triton refuses such a config itself; so here the backend is asked as Triton would."""
    config = {"default_model_filename": "", "parameters": {}, "input": [], "output": []}
    arguments = {
        "model_config": json.dumps(config),
        "model_repository": str(triton.repository / "tiny"),
        "model_name": "tiny",
        "model_version": "1",
        "model_instance_kind": "GPU",
        "model_instance_device_id": "0",
    }
    script = (
        "import sys, types\n"
        "utils = types.ModuleType('triton_python_backend_utils')\n"
        "utils.TritonModelException = RuntimeError\n"
        "sys.modules[utils.__name__] = utils\n"
        f"sys.path.insert(0, {str(SCRIPTS / 'backends' / 'onnxruntime')!r})\n"
        "import model\n"
        f"model.TritonPythonModel().initialize({arguments!r})\n"
    )
    folder = subprocess.run(
        [sys.executable, SCRIPTS / "install.py", "--check"], capture_output=True, text=True, check=True
    )
    python = Path(folder.stdout.split()[-1]) / "bin" / "python3"
    answer = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert "RuntimeError: tiny version 1 is to run on GPU 0, and ONNX Runtime got" in answer.stderr


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """`deploy/triton` in a checkout where nothing is installed."""
    return Path(shutil.copytree(SCRIPTS, tmp_path / "deploy" / "triton"))


def run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_an_installation_serving_says_how_to_get_one(scripts: Path) -> None:
    answer = run(scripts / "serve.py")
    assert answer.returncode == 1
    assert answer.stderr == "error: Triton is not installed: run `make triton-setup`\n"


def test_half_an_installation_does_not_count(scripts: Path) -> None:
    (scripts / "requirements.txt").write_text("./there-is-no-such-wheel.whl\n")
    leftover = scripts.parents[1] / "build" / "triton" / ".part-1"
    leftover.mkdir(parents=True)
    assert run(scripts / "install.py").returncode == 1
    assert run(scripts / "install.py", "--check").returncode == 1
    assert {path.name for path in leftover.parent.iterdir()} == {".lock"}
