"""All four of tritonclient's clients, unmodified, against the gateway on both of its backends."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.models import publish_tiny, tiny_logits
from tests.server import Server, expected, picture
from tests.triton import Triton, needs_triton

PIXELS = np.stack([picture(number) for number in range(3)])

Ask = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module", params=["embedded", pytest.param("triton", marks=needs_triton)])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models, folder = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("gateway")
    publish_tiny(models)
    if request.param == "embedded":
        with Server(models, folder).start() as server:
            yield server
        return
    nothing = tmp_path_factory.mktemp("nothing")
    with Triton(models, folder).start() as behind:
        settings = {"backend": "triton", "triton_url": behind.grpc_url, "poll_seconds": 0.2}
        with Server(nothing, folder, **settings).start() as server:
            yield server


@pytest.fixture(params=["http", "http.aio", "grpc", "grpc.aio"])
def module(request: pytest.FixtureRequest) -> Any:
    return {
        "http": tritonclient.http, "http.aio": tritonclient.http.aio,
        "grpc": tritonclient.grpc, "grpc.aio": tritonclient.grpc.aio,
    }[request.param]  # fmt: skip


def plain(answer: Any) -> Any:
    """Messages as the dictionaries that the HTTP clients give."""
    return MessageToDict(answer, preserving_proto_field_name=True) if isinstance(answer, Message) else answer


async def test_a_client(gateway: Server, module: Any) -> None:
    address = gateway.grpc if "grpc" in module.__name__ else gateway.url.removeprefix("http://")
    client = module.InferenceServerClient(address)

    async def ask(name: str, *given: Any, **named: Any) -> Any:
        answer = getattr(client, name)(*given, **named)
        return plain(await answer if inspect.isawaitable(answer) else answer)

    try:
        await look_around(ask)
        await infer(ask, module)
        await fail(ask, module)
    finally:
        await ask("close")


async def look_around(ask: Ask) -> None:
    assert await ask("is_server_live")
    assert await ask("is_server_ready")
    assert await ask("is_model_ready", "tiny")
    assert not await ask("is_model_ready", "nobody")
    metadata = await ask("get_server_metadata")
    assert (metadata["name"], "classification" in metadata["extensions"]) == ("fovea", True)
    (image,) = (await ask("get_model_metadata", "tiny"))["inputs"]
    assert (image["name"], image["datatype"], list(map(int, image["shape"]))) == ("image", "UINT8", [-1, 8, 8, 3])
    config = await ask("get_model_config", "tiny")
    labels = config.get("config", config)["parameters"]["labels"]["string_value"]
    assert json.loads(labels) == ["label-0", "label-1", "label-2"]
    index = await ask("get_model_repository_index")
    models = {each["name"] for each in (index["models"] if isinstance(index, dict) else index)}
    assert models >= {"tiny", "tiny.encoded"}


async def infer(ask: Ask, module: Any) -> None:
    before = await counted(ask)
    pixels = module.InferInput("image", list(PIXELS.shape), "UINT8")
    pixels.set_data_from_numpy(PIXELS)
    found = await ask("infer", "tiny", [pixels], request_id="mine")
    assert np.allclose(found.as_numpy("logits"), tiny_logits(PIXELS), atol=1e-4)
    response = plain(found.get_response())
    assert (response["id"], response["model_version"]) == ("mine", "1")

    classes = module.InferRequestedOutput("logits", class_count=2)
    best = (await ask("infer", "tiny", [pixels], outputs=[classes])).as_numpy("logits")
    for logits, row in zip(tiny_logits(PIXELS), best, strict=True):
        value, index, label = row[0].decode().split(":")
        assert (int(index), label) == (logits.argmax(), f"label-{logits.argmax()}")
        assert float(value) == pytest.approx(logits.max(), abs=1e-3)

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 40, 90)).save(buffer, "JPEG", quality=95)
    with Image.open(buffer) as image:
        decoded = np.asarray(image)
    file = module.InferInput("encoded_image", [1, 1], "BYTES")
    file.set_data_from_numpy(np.array([[buffer.getvalue()]], object))
    found = await ask("infer", "tiny.encoded", [file])
    assert np.allclose(found.as_numpy("probabilities"), [expected(decoded)], atol=0.02)
    assert await counted(ask) == before + 6


async def counted(ask: Ask) -> int:
    """Images that the model has answered, as its statistics say."""
    (stats,) = (await ask("get_inference_statistics", "tiny"))["model_stats"]
    return int(stats.get("inference_count", 0))


async def fail(ask: Ask, module: Any) -> None:
    pixels = module.InferInput("image", list(PIXELS.shape), "UINT8")
    pixels.set_data_from_numpy(PIXELS)
    narrow = module.InferInput("image", [1, 8, 7, 3], "UINT8")
    narrow.set_data_from_numpy(PIXELS[:1, :, :7])
    file = module.InferInput("encoded_image", [1, 1], "BYTES")
    file.set_data_from_numpy(np.array([[b"no image"]], object))
    for name, given, status, says in (
        ("nobody", pixels, ("404", "StatusCode.NOT_FOUND"), "nobody"),
        ("tiny", narrow, ("400", "StatusCode.INVALID_ARGUMENT"), "8"),
        ("tiny.encoded", file, ("415", "StatusCode.INVALID_ARGUMENT"), "format"),
    ):
        with pytest.raises(InferenceServerException, match=says) as refused:
            await ask("infer", name, [given])
        assert refused.value.status() in status
