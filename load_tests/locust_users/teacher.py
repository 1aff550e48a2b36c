"""A user who teaches a head, uses it and deletes it, over and over."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from urllib.parse import quote

from load_tests.locust_users import http_client
from load_tests.locust_users.outcomes import Exchange, Refused, Wrong
from load_tests.locust_users.paced import Paced

EXAMPLES = 4  # of each label
QUESTIONS = 3  # to the head, of each label


class Teacher(Paced):
    """Each arrival is the next step of a lesson; a step that was refused is tried again, one that failed ends it."""

    weight = 4
    crowd = 0.1  # more would share the arrivals of a short run, and none would come to fit

    def on_start(self) -> None:
        super().on_start()
        self._steps: list[Exchange] = []
        self._head = f"load-{uuid.uuid4().hex[:12]}"
        self._made = False

    def on_stop(self) -> None:
        """Leave no head behind."""
        if self._made:
            self.perform(Exchange("HTTP", "delete head", 0, self._delete))
        super().on_stop()

    def exchange(self) -> Exchange:
        if not self._steps:
            self._steps = self._lesson()
        step = self._steps[0]

        def send() -> int:
            try:
                size = step.send()
            except Refused:
                raise
            except Wrong:
                self._steps = [Exchange("HTTP", "delete head", 0, self._delete)] if self._made else []
                raise
            self._steps = self._steps[1:]
            return size

        return Exchange(step.transport, step.name, step.images, send)

    def _lesson(self) -> list[Exchange]:
        taught = self.target.album.lessons(self.random, EXAMPLES + 1)
        return [
            Exchange("HTTP", "make head", 0, self._make),
            *(
                Exchange("HTTP", "add examples", EXAMPLES, self._adding(label, images[:EXAMPLES]))
                for label, images in taught.items()
            ),
            Exchange("HTTP", "fit head", 0, self._fitting(len(taught))),
            *(
                Exchange("HTTP", "classify with head", 1, self._asking(label, images[EXAMPLES]))
                for label, images in list(taught.items()) * QUESTIONS
            ),
            Exchange("HTTP", "delete head", 0, self._delete),
        ]

    def _make(self) -> int:
        backbone = self.random.choice(self.target.album.models)
        reply = self.http.ask("PUT", f"/v1/heads/{self._head}", json.dumps({"backbone": backbone}).encode())
        reply.good()
        self._made = True
        return len(reply.data)

    def _adding(self, label: str, images: list[bytes]) -> Callable[[], int]:
        def send() -> int:
            path = f"/v1/heads/{self._head}/examples?label={quote(label)}"
            reply = self.http.ask("POST", path, *http_client.multipart(images))
            answer = reply.good()
            # Some may be there already, if an earlier attempt was answered too late.
            if len(answer["added"]) + len(answer["duplicates"]) != len(images):
                raise Wrong(f"of {len(images)} examples {len(answer['added'])} were added")
            return len(reply.data)

        return send

    def _fitting(self, labels: int) -> Callable[[], int]:
        def send() -> int:
            reply = self.http.ask("POST", f"/v1/heads/{self._head}/fit")
            answer = reply.good()
            if len(answer["classes"]) != labels or answer["examples"] != labels * EXAMPLES:
                raise Wrong(f"fitted {answer['examples']} examples of {len(answer['classes'])} labels")
            return len(reply.data)

        return send

    def _asking(self, label: str, image: bytes) -> Callable[[], int]:
        def send() -> int:
            reply = self.http.ask("POST", f"/v1/models/{self._head}/classify", image, "image/png")
            http_client.right(reply.good(), [label])
            return len(reply.data)

        return send

    def _delete(self) -> int:
        reply = self.http.ask("DELETE", f"/v1/heads/{self._head}")
        if reply.status != 204:
            reply.good()
        self._made = False
        return 0
