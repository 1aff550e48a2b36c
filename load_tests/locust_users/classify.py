"""Users who have images classified."""

from __future__ import annotations

import base64
import json
from typing import Any

import grpc

from load_tests.locust_users import http_client, rpc_client
from load_tests.locust_users.known import Known
from load_tests.locust_users.outcomes import Exchange, Wrong
from load_tests.locust_users.paced import Paced

MIDDLING = 640  # pixels a side at most, of images that are sent several at a time
PARTS, BATCH, STREAM = 3, 8, 6  # images at most in a multipart body and in JSON; images of a stream
HANG_UP = 0.25  # seconds after the deadline, in which the server may still say that it is too late
UNARY = 4  # images at most of a gRPC call


class HttpClassify(Paced):
    """One image as it is, or several as multipart or JSON."""

    weight = 58

    def exchange(self) -> Exchange:
        (way,) = self.random.choices((self._raw, self._multipart, self._json), (60, 20, 20))
        return way()

    def _raw(self) -> Exchange:
        image = self.target.album.any(self.random)
        name = f"classify raw, {image.side} pixels a side"
        return self._exchange(name, [image], image.data, image.media)

    def _multipart(self) -> Exchange:
        images = self.target.album.several(self.random, self.random.randint(1, PARTS), MIDDLING)
        return self._exchange("classify multipart", images, *http_client.multipart(image.data for image in images))

    def _json(self) -> Exchange:
        images = self.target.album.several(self.random, self.random.randint(2, BATCH), MIDDLING)
        listed = [{"b64": base64.b64encode(image.data).decode()} for image in images]
        return self._exchange("classify JSON", images, json.dumps({"images": listed}).encode(), "application/json")

    def _exchange(self, name: str, images: list[Known], body: bytes, media: str) -> Exchange:
        path = f"/v1/models/{images[0].model}/classify{self.target.query}"

        def send() -> int:
            reply = self.http.ask("POST", path, body, media, seconds=self.target.patience + HANG_UP)
            http_client.right(reply.good(), (image.label for image in images))
            return len(reply.data)

        return Exchange("HTTP", name, len(images), send, timed=True)


class GrpcClassify(Paced):
    """Calls and streams of the native gRPC service."""

    weight = 30

    def exchange(self) -> Exchange:
        album = self.target.album
        (way,) = self.random.choices(("one", "several", "stream"), (45, 15, 40))
        if way == "one":
            return self._call("Classify, one image", [album.any(self.random)])
        if way == "several":
            number = self.random.randint(2, UNARY)
            return self._call("Classify, several", album.several(self.random, number, MIDDLING))
        return self._streamed(album.several(self.random, STREAM, MIDDLING))

    def _call(self, name: str, images: list[Known]) -> Exchange:
        def send() -> int:
            answer = self._answer("classify", images)
            rpc_client.right(answer.predictions, [image.label for image in images])
            return int(answer.ByteSize())

        return Exchange("gRPC", name, len(images), send, timed=True)

    def _streamed(self, images: list[Known]) -> Exchange:
        def send() -> int:
            answers = self._answer("stream", images)
            rpc_client.right([each.prediction for each in answers], [image.label for image in images])
            return sum(each.ByteSize() for each in answers)

        return Exchange("gRPC", "ClassifyStream", len(images), send, timed=True)

    def _answer(self, way: str, images: list[Known]) -> Any:
        """Raises Refused, Late or Wrong."""
        ask = getattr(self.target.rpc, way)
        try:
            return ask([image.data for image in images], images[0].model, self.target.patience)
        except grpc.RpcError as error:
            rpc_client.excused(error)
            raise Wrong(f"{rpc_client.code_of(error)}: {error.details()}") from None
