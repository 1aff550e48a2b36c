"""Teaching over HTTP: heads, their examples, fitting, versions and neighbours."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.errors import InvalidRequest
from service.heads.archive import ArchiveLimits, is_archive, read_archive
from service.heads.head import HeadSpec
from service.heads.labels import label_of
from service.heads.live import LiveHeads
from service.heads.teaching import PAGE, Labelled, Taught, Teaching
from service.store.store import HeadRow
from service.transports.http import schema
from service.transports.http.bodies import BodyLimits, header, images_in, read_body
from service.transports.http.gate import KEY
from service.transports.http.guard import Guard, responses, takes
from service.transports.http.problems import problem

ARCHIVE_FILES = 10_000
_INFLATION = 4  # times what a request may have: images hardly compress

_EXAMPLES_BODY = {
    "required": True,
    "content": {
        **{
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/*", "application/octet-stream", "application/zip")
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}
_IMAGE_BODY = {
    "required": True,
    "content": {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/*", "application/octet-stream")
    },
}

Label = Annotated[str | None, Query(description="A class, 1 to 64 printable characters.")]


def add(app: FastAPI, teaching: Teaching, live: LiveHeads, guard: Guard, limits: BodyLimits, *, timeout: float) -> None:
    """Add the calls to an application.

    Args:
        app: Takes them.
        teaching: Carries them out.
        live: Knows how each head stands.
        guard: Lets through those that change something.
        limits: Of a body.
        timeout: Seconds until the deadline of a call that embeds images.
    """

    def shown(row: HeadRow) -> dict[str, Any]:
        return head_card(row, live)

    async def images_of(request: Request, label: str | None, deadline: float) -> list[Labelled]:
        body = await read_body(request.scope, request.receive, limits.max_bytes, deadline)
        kind = header(request.scope, b"content-type")
        if is_archive(kind, body):
            if label is not None:
                raise InvalidRequest("the folders of a zip are its labels: leave the label out of the query")
            entries = await run_in_threadpool(
                read_archive, body, ArchiveLimits(ARCHIVE_FILES, limits.max_bytes, _INFLATION * limits.max_bytes)
            )
            found = [Labelled(entry.data, entry.label, entry.name) for entry in entries]
        else:
            if label is None:
                raise InvalidRequest(
                    "name the class that the images show: ?label=…; or send a zip of one folder per class"
                )
            wanted = label_of(label)
            found = [Labelled(image, wanted) for image in images_in(kind, body, limits)]
        request.scope[KEY].images = len(found)
        return found

    @app.get("/v1/heads", response_model=schema.Heads, tags=["heads"], summary="All heads")
    async def heads() -> Any:
        return {"heads": [shown(row) for row in teaching.heads()]}

    @app.get(
        "/v1/heads/{head}",
        response_model=schema.HeadCard,
        responses=responses("unknown_model", "backend_unavailable"),
        tags=["heads"],
        summary="A head, its examples and versions",
    )
    async def head_of(head: str) -> Any:
        return shown(await teaching.head(head))

    making = takes(schema.NewHead, "unknown_model", "backend_unavailable")
    making["responses"][201] = {"model": schema.HeadCard, "description": "It is new"}

    @app.put(
        "/v1/heads/{head}",
        response_model=schema.HeadCard,
        tags=["heads"],
        summary="Make a head",
        description="A head is a classifier of your own on the features of a model, its backbone. It takes labelled"
        " images, and once it is fitted it is a model: `POST /v1/models/{head}/classify`. Answers 201 if it is new.",
        **making,
    )
    async def put_head(head: str, request: Request) -> Any:
        row, created = await teaching.create(head, (await guard.body(request, schema.NewHead)).backbone)
        return JSONResponse(shown(row), 201 if created else 200)

    @app.delete(
        "/v1/heads/{head}",
        status_code=204,
        response_class=Response,
        responses=responses("forbidden", "unknown_model", "backend_unavailable"),
        tags=["heads"],
        summary="Delete a head with its examples and versions",
    )
    async def delete_head(head: str, request: Request) -> Response:
        guard.authorize(request)
        await teaching.delete(head)
        return Response(status_code=204)

    @app.post(
        "/v1/heads/{head}/examples",
        response_model=schema.TaughtAnswer,
        responses=responses(
            "invalid_request",
            "forbidden",
            "unknown_model",
            "too_large",
            "unsupported_format",
            "invalid_image",
            "overloaded",
            "backend_unavailable",
            "deadline_exceeded",
        ),
        tags=["heads"],
        summary="Teach: give labelled images",
        description="Images of one class, named in the query; or a zip of one folder per class. The backbone embeds"
        " them, and their features are kept with the labels, the images are not. All that can be read are stored"
        " together; an image that was stored before is a duplicate, or under another label a conflict, and stored no"
        " second time.",
        openapi_extra={"requestBody": _EXAMPLES_BODY},
    )
    async def teach(head: str, request: Request, label: Label = None) -> Any:
        guard.authorize(request)
        await teaching.head(head)  # before the body is read
        deadline = time.monotonic() + timeout
        images = await images_of(request, label, deadline)
        taught = await teaching.teach(head, images, deadline)
        return _taught(head, images, taught, (await teaching.head(head)).examples)

    @app.get(
        "/v1/heads/{head}/examples",
        response_model=schema.Examples,
        responses=responses("invalid_request", "unknown_model", "backend_unavailable"),
        tags=["heads"],
        summary="List examples",
    )
    async def examples(
        head: str,
        label: Label = None,
        after: Annotated[str | None, Query(description="The id that the page before ended with.")] = None,
        limit: Annotated[int, Query(description=f"At most {PAGE}.")] = 100,
    ) -> Any:
        found = await teaching.examples(head, label, after, limit)
        return {"examples": [asdict(one) for one in found], "next": found[-1].id if len(found) == limit else None}

    @app.delete(
        "/v1/heads/{head}/examples",
        response_model=schema.Deleted,
        responses=responses("invalid_request", "forbidden", "unknown_model", "backend_unavailable"),
        tags=["heads"],
        summary="Delete the examples of a class, or all",
    )
    async def delete_examples(
        head: str, request: Request, label: Label = None, everything: Annotated[bool, Query(alias="all")] = False
    ) -> Any:
        guard.authorize(request)
        if (label is None) is not everything:
            raise InvalidRequest("say which: ?label=… or ?all=true")
        return {"deleted": await teaching.remove(head, label=label)}

    @app.delete(
        "/v1/heads/{head}/examples/{example}",
        status_code=204,
        response_class=Response,
        responses=responses("forbidden", "unknown_model", "backend_unavailable"),
        tags=["heads"],
        summary="Delete an example",
    )
    async def delete_example(head: str, example: str, request: Request) -> Response:
        guard.authorize(request)
        await teaching.remove(head, example=example)
        return Response(status_code=204)

    @app.post(
        "/v1/heads/{head}/fit",
        response_model=schema.Fitted,
        responses=responses(
            "invalid_request",
            "forbidden",
            "unknown_model",
            "overloaded",
            "backend_failed",
            "backend_unavailable",
            "deadline_exceeded",
        ),
        tags=["heads"],
        summary="Fit a new version on the examples there are",
        description="Regularised multinomial logistic regression; cross-validation chooses its strength and measures"
        " it. The new version serves when the call returns, on other workers and replicas within a second.",
    )
    async def fit(head: str, request: Request) -> Any:
        guard.authorize(request)
        began = time.monotonic()
        return _fitted(await teaching.fit(head), time.monotonic() - began)

    async def neighbors(
        head: str,
        request: Request,
        k: Annotated[int, Query(ge=1, le=100, description="How many.")] = 5,
    ) -> Any:
        """The taught examples whose features are nearest to those of an image. `distance` is one less the cosine of the
        angle between them: 0 for the same image, 2 at most."""
        deadline = time.monotonic() + timeout
        body = await read_body(request.scope, request.receive, limits.max_bytes, deadline)
        images = images_in(header(request.scope, b"content-type"), body, limits)
        if len(images) > 1:
            raise InvalidRequest("send one image")
        request.scope[KEY].images = 1
        found = await teaching.neighbors(head, images[0], k, deadline)
        return {"head": head, "neighbors": [asdict(one) for one in found]}

    nearest = responses(
        "invalid_request", "unknown_model", "too_large", "unsupported_format", "invalid_image", "overloaded",
        "backend_unavailable", "deadline_exceeded",
    )  # fmt: skip
    app.post(
        "/v1/heads/{head}/neighbors",
        response_model=schema.Neighbors,
        responses=nearest,
        tags=["heads"],
        summary="The nearest taught examples of an image",
        openapi_extra={"requestBody": _IMAGE_BODY},
    )(neighbors)
    app.get("/v1/heads/{head}/neighbors", include_in_schema=False, response_model=schema.Neighbors)(neighbors)

    @app.put(
        "/v1/heads/{head}/version",
        response_model=schema.HeadCard,
        tags=["heads"],
        summary="Roll back or forward",
        description="Pins the version that answers requests that name none, until another is pinned or null brings back"
        " the newest.",
        **takes(schema.Pin, "unknown_model", "backend_unavailable"),
    )
    async def choose(head: str, request: Request) -> Any:
        return shown(await teaching.choose(head, (await guard.body(request, schema.Pin)).version))


def head_card(row: HeadRow, live: LiveHeads) -> dict[str, Any]:
    """Everything known of a head but its numbers."""
    statuses = {status.version: status for status in live.statuses(row.name)}
    current = next((status.version for status in statuses.values() if status.current), None)
    problem = None
    if row.versions and current is None:
        problem = statuses[row.pinned or row.versions[-1].number].problem
    last = row.versions[-1] if row.versions else None
    return {
        "name": row.name,
        "state": "untaught" if last is None else "failed" if problem else "ready",
        "problem": problem,
        "version": current,
        "pinned": row.pinned,
        "backbone": row.backbone.model_dump(),
        "examples": _counts(row.examples),
        "changed_since_fit": last is not None and last.example_revision != row.example_revision,
        "versions": [
            {
                "version": version.number,
                "created": version.spec.created,
                "examples": version.spec.report.examples,
                "labels": len(version.spec.labels),
                "accuracy": version.spec.report.accuracy,
                "ece": version.spec.report.ece,
                "warnings": version.spec.report.warnings,
                "state": {"unloaded": "stored"}.get(statuses[version.number].state, statuses[version.number].state),
            }
            for version in row.versions
        ],
    }


def _counts(examples: Mapping[str, int]) -> dict[str, Any]:
    return {
        "total": sum(examples.values()),
        "labels": [{"label": label, "count": count} for label, count in sorted(examples.items())],
    }


def _taught(head: str, images: list[Labelled], taught: Taught, examples: Mapping[str, int]) -> dict[str, Any]:
    answer: dict[str, Any] = {"head": head, "added": [], "duplicates": [], "conflicts": [], "errors": []}
    for index, stored in taught.stored.items():
        one = {"index": index, "id": stored.id, "label": stored.label}
        if name := images[index].name:
            one["name"] = name
        if stored.outcome == "added":
            answer["added"].append(one)
        elif stored.outcome == "duplicate":
            answer["duplicates"].append(one)
        else:
            answer["conflicts"].append(one | {"given": images[index].label})
    for index, error in taught.errors.items():
        one = {"index": index, "error": problem(error.code, error.message)}
        if name := images[index].name:
            one["name"] = name
        answer["errors"].append(one)
    return answer | {"examples": _counts(examples)}


def _fitted(spec: HeadSpec, seconds: float) -> dict[str, Any]:
    report = spec.report.model_dump(mode="json")
    return {
        "head": spec.name,
        "version": spec.version,
        "labels": spec.labels,
        **report,
        "coverage": spec.calibration.coverage,
        "prediction_sets": spec.calibration.conformal_quantile is not None,
        "seconds": round(seconds, 3),
    }
