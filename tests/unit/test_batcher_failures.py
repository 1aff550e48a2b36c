"""The batcher when things go wrong: late, cancelled, poisoned, stuck, closed."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from service.backends.base import Row
from service.batcher import INLINE_SECONDS, STUCK_SECONDS, Batcher, Observer
from service.errors import BackendFailed, BackendUnavailable, DeadlineExceeded, Overloaded
from tests.batching import (
    LOGITS,
    POISON,
    Model,
    batching,
    infer,
    queued,
    sample,
    settle,
    until,
    value_of,
)

# Deadlines and clients gone.


async def test_a_deadline_that_passes_in_the_queue_is_answered_then_and_never_runs() -> None:
    model = Model()
    async with batching(model) as batcher:
        model.hold()
        first = await queued(batcher, 0)
        await model.entered()
        started = time.monotonic()
        late = await queued(batcher, 1, within=0.1)
        patient = await queued(batcher, 2, within=30)
        (result,) = await settle(late)
        assert 0.09 < time.monotonic() - started < 0.4  # while the batch before it still runs
        assert isinstance(result, DeadlineExceeded)
        model.release()
        await settle([*first, *patient])
    assert model.batches == [[0], [2]]


async def test_a_deadline_that_passes_while_running_is_answered_then() -> None:
    model = Model()
    async with batching(model) as batcher:
        model.hold()
        tasks = await queued(batcher, 0, within=0.1)
        await model.entered()
        (result,) = await settle(tasks)
        assert isinstance(result, DeadlineExceeded)
        model.release()
        assert value_of(await infer(batcher, 5, within=5)) == 5


async def test_a_deadline_that_passes_while_decoding_is_answered_without_running() -> None:
    model = Model()
    async with batching(model) as batcher:
        (ticket,) = batcher.admit(time.monotonic() + 0.01)
        await asyncio.sleep(0.03)
        with pytest.raises(DeadlineExceeded):
            await ticket.infer(sample(1), LOGITS)
    assert model.batches == []


async def test_what_was_cancelled_in_the_queue_never_runs() -> None:
    model = Model()
    async with batching(model) as batcher:
        model.hold()
        first = await queued(batcher, 0)
        await model.entered()
        gone, stays = await queued(batcher, 1, 2)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        model.release()
        await settle([*first, stays])
    assert model.batches == [[0], [2]]


async def test_cancelling_a_running_image_leaves_its_neighbours_alone() -> None:
    model = Model()
    async with batching(model) as batcher:
        model.hold()
        tasks = await queued(batcher, 0, 1, 2)
        await model.entered()
        tasks[1].cancel()
        await asyncio.sleep(0)
        model.release()
        rows = await settle(tasks)
    assert [isinstance(row, Row) and value_of(row) for row in rows] == [0, False, 2]


async def test_the_dead_hold_no_places_while_a_long_batch_runs() -> None:
    """Clients that gave up, or ran out of time, must not make the queue look full."""
    model = Model()
    async with batching(model, max_queue=4) as batcher:
        model.hold()
        first = await queued(batcher, 0)
        await model.entered()
        gone = await queued(batcher, 1, 2)
        late = await queued(batcher, 3, 4, within=0.02)
        for task in gone:
            task.cancel()
        await settle([*gone, *late])
        await asyncio.sleep(0.05)
        alive = await queued(batcher, 5, 6, 7, 8)
        assert not any(task.done() for task in alive)
        model.release()
        await settle([*first, *alive])
    assert model.batches == [[0], [5, 6, 7, 8]]


# Failures.


INLINE_AND_NOT = pytest.mark.parametrize("seconds", [INLINE_SECONDS / 10, 2 * INLINE_SECONDS], ids=["inline", "thread"])


@INLINE_AND_NOT
async def test_a_poisonous_image_fails_alone(seconds: float) -> None:
    model = Model()
    async with batching(model, max_batch=8, seconds=seconds) as batcher:
        results = await settle(await queued(batcher, 1, 2, POISON, 3))
        assert isinstance(results[2], BackendFailed)
        assert "secret" not in results[2].message  # a backend's own words stay in the log
        assert isinstance(results[2].__cause__, ValueError)
        good = [results[0], results[1], results[3]]
        assert [value_of(row) for row in good if isinstance(row, Row)] == [1, 2, 3]
        assert value_of(await infer(batcher, 4)) == 4


@INLINE_AND_NOT
async def test_a_model_that_always_fails_answers_every_time(seconds: float) -> None:
    model = Model()
    async with batching(model, seconds=seconds) as batcher:
        for _ in range(3):
            results = await settle(await queued(batcher, *[POISON] * 3))
            assert all(isinstance(result, BackendFailed) for result in results)
        assert value_of(await infer(batcher, 1)) == 1


@INLINE_AND_NOT
@pytest.mark.parametrize("rows", [0, 1, 3])
async def test_outputs_of_too_few_or_many_rows_are_a_failure_and_not_the_end(rows: int, seconds: float) -> None:
    model = Model()
    model.fault = lambda values: {"logits": np.zeros((rows, 1))} if 1 in values else None
    async with batching(model, seconds=seconds) as batcher:
        results = await settle(await queued(batcher, 1, 2))
        assert isinstance(results[1], Row)  # found to be good when it ran alone
        assert isinstance(results[0], Row if rows == 1 else BackendFailed)
        assert value_of(await infer(batcher, 3, within=5)) == 3


async def test_samples_of_other_shapes_are_not_mixed_up() -> None:
    model = Model()
    async with batching(model) as batcher:
        (odd,) = batcher.admit(math.inf)
        wide = asyncio.create_task(odd.infer(np.full((1, 2, 1), 9, np.uint8), LOGITS))
        results = await settle([wide, *await queued(batcher, 1, 2)])
    assert [value_of(row) for row in results if isinstance(row, Row)] == [9, 1, 2]


async def test_a_stuck_run_is_told_and_takes_nobody_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    async with batching(model) as batcher:
        batcher.times.calibrate(0.005, 0.005, 4)
        model.hold()
        running = await queued(batcher, 0, within=0.3)
        await model.entered()
        waiting = await queued(batcher, 1, 2, within=0.3)
        assert batcher.problem() is None
        started = time.monotonic()
        results = await settle([*running, *waiting])
        assert time.monotonic() - started < 0.6
        assert all(isinstance(result, DeadlineExceeded) for result in results)
        # Overdue by about 0.3 s, so another 0.3 s are expected: a deadline of 0.2 s is refused at arrival.
        with pytest.raises(Overloaded):
            batcher.admit(time.monotonic() + 0.2)
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + STUCK_SECONDS)
        assert "longer than expected" in (batcher.problem() or "")
        monkeypatch.undo()
        model.release()
        await until(lambda: batcher.problem() is None and not batcher.wait(0))
        assert value_of(await infer(batcher, 3)) == 3
    assert model.batches == [[0], [3]]


async def test_no_future_is_left_with_an_exception_that_nobody_looked_at() -> None:
    model = Model()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with batching(model) as batcher:
        model.hold()
        tasks = await queued(batcher, 0, POISON, 2)
        await model.entered()
        late = await queued(batcher, 3, 4, within=0.02)
        await asyncio.sleep(0.015)
        late[0].cancel()  # about when its deadline is swept
        tasks[1].cancel()
        await settle(late)
        model.release()
        await settle(tasks)
    del tasks, late
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


# Closing.


async def test_close_finishes_what_was_admitted() -> None:
    model = Model()
    batcher = Batcher("closing", model, max_batch=2, max_queue=64, observer=Observer())
    batcher.times.calibrate(2 * INLINE_SECONDS, 2 * INLINE_SECONDS, 2)
    batcher.start()
    model.hold()
    tasks = await queued(batcher, 0)
    await model.entered()
    tasks += await queued(batcher, 1, 2, 3)
    (decoding,) = batcher.admit(math.inf)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0.01)
    with pytest.raises(BackendUnavailable):
        batcher.admit(math.inf)
    model.release()
    rows = await settle(tasks)
    assert [value_of(row) for row in rows if isinstance(row, Row)] == [0, 1, 2, 3]
    assert not closing.done()  # one image is still being decoded
    assert value_of(await decoding.infer(sample(4), LOGITS)) == 4
    await asyncio.wait_for(closing, 5)
    assert not any(thread.name == "infer-closing" for thread in threading.enumerate())


@pytest.mark.parametrize("way", ["nothing", "ticket closed", "cancelled", "expired", "failed"])
async def test_close_does_not_hang(way: str) -> None:
    model = Model()
    batcher = Batcher("fake:1", model, max_batch=2, max_queue=64, observer=Observer())
    batcher.times.calibrate(2 * INLINE_SECONDS, 2 * INLINE_SECONDS, 2)
    batcher.start()
    if way == "ticket closed":
        tickets = batcher.admit(math.inf, 3)
        for ticket in tickets:
            ticket.close()
    elif way == "cancelled":
        tasks = await queued(batcher, 1, 2, 3)
        for task in tasks:
            task.cancel()
        await settle(tasks)
    elif way == "expired":
        model.hold()
        await settle(await queued(batcher, 1, 2, 3, within=0.03))
        model.release()
    elif way == "failed":
        await settle(await queued(batcher, POISON, POISON, POISON))
    await asyncio.wait_for(batcher.close(), 3)
    await asyncio.wait_for(batcher.close(), 3)
