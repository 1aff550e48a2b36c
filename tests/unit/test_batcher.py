"""The batcher over a fake blocking function: what runs, with whom, and who is turned away."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.backends.base import Row
from service.batch_times import BatchTimes
from service.batcher import INLINE_SECONDS, Batcher
from service.errors import BackendFailed, DeadlineExceeded, FoveaError, Overloaded
from tests.batching import (
    LOGITS,
    POISON,
    Model,
    Record,
    batching,
    infer,
    queued,
    settle,
    spawn,
    value_of,
)

# Work-conserving.


async def test_an_idle_batcher_runs_a_single_image_at_once() -> None:
    model = Model()
    async with batching(model) as batcher:
        started = time.monotonic()
        row = await infer(batcher, 7)
        assert time.monotonic() - started < 0.1  # no timer: a batch window would show here
    assert value_of(row) == 7
    assert (row.batch_size, model.batches) == (1, [[7]])


async def test_what_arrives_in_one_turn_of_the_loop_runs_together() -> None:
    model = Model()
    async with batching(model, max_batch=8) as batcher:
        await settle(spawn(*(infer(batcher, value) for value in range(5))))
    assert model.batches == [[0, 1, 2, 3, 4]]


async def test_a_busy_batcher_gathers_all_that_waits_up_to_the_largest_batch() -> None:
    model, record = Model(), Record()
    async with batching(model, max_batch=4, observer=record) as batcher:
        model.hold()
        first = await queued(batcher, 100)
        await model.entered()
        rest = await queued(batcher, *range(6))
        assert record.depth == 6
        model.release()
        rows = await settle([*first, *rest])
    assert model.batches == [[100], [0, 1, 2, 3], [4, 5]]
    assert record.sizes == [1, 4, 2]
    assert record.depth == 0
    assert [row.batch_size for row in rows if isinstance(row, Row)] == [1, 4, 4, 4, 4, 2, 2]


async def test_only_the_outputs_wanted_are_computed() -> None:
    model = Model()
    async with batching(model) as batcher:
        model.hold()
        first = await queued(batcher, 0)
        await model.entered()
        rest = spawn(infer(batcher, 1, outputs=LOGITS), infer(batcher, 2, outputs=frozenset({"features"})))
        await asyncio.sleep(0)
        model.release()
        rows = await settle([*first, *rest])
    assert model.outputs == [LOGITS, frozenset({"logits", "features"})]
    assert isinstance(rows[2], Row)
    assert int(rows[2].outputs["features"][0]) == 2


# Admission.


async def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    model = Model()
    async with batching(model, max_queue=3) as batcher:
        batcher.times.calibrate(2.0, 2.0, 4)  # as if a batch took two seconds
        model.hold()
        tasks = await queued(batcher, 0)
        await model.entered()
        tasks += await queued(batcher, 1, 2, 3)
        with pytest.raises(Overloaded, match="full") as refused:
            batcher.admit(math.inf)
        assert refused.value.retry_after is not None
        assert 2.0 < refused.value.retry_after < 5.0  # what runs and one batch more
        model.release()
        await settle(tasks)
        assert await infer(batcher, 9)


async def test_images_being_decoded_hold_their_places() -> None:
    async with batching(Model(), max_queue=3) as batcher:
        tickets = batcher.admit(math.inf, 3)
        with pytest.raises(Overloaded):
            batcher.admit(math.inf)
        tickets[0].close()
        tickets[0].close()  # twice gives back one place only
        batcher.admit(math.inf)[0].close()
        with pytest.raises(Overloaded):
            batcher.admit(math.inf, 2)
        for ticket in tickets:
            ticket.close()
        for ticket in batcher.admit(math.inf, 3):
            ticket.close()


async def test_images_of_one_request_are_admitted_together_or_not_at_all() -> None:
    async with batching(Model(), max_queue=3) as batcher:
        with pytest.raises(Overloaded):
            batcher.admit(math.inf, 4)
        for ticket in batcher.admit(math.inf, 3):  # nothing of the refused four was kept
            ticket.close()


async def test_what_cannot_be_answered_in_time_is_refused_at_arrival_and_never_runs() -> None:
    model = Model()
    async with batching(model) as batcher:
        batcher.times.calibrate(0.2, 0.2, 4)
        with pytest.raises(Overloaded, match="200 ms") as refused:
            await infer(batcher, 1, within=0.1)
        assert refused.value.retry_after is not None
        assert value_of(await infer(batcher, 2, within=1.0)) == 2
    assert model.batches == [[2]]


async def test_the_prediction_counts_what_runs_what_waits_and_what_is_being_decoded() -> None:
    model = Model()
    async with batching(model, max_batch=2) as batcher:
        batcher.times.calibrate(1.0, 1.0, 2)
        model.hold()
        tasks = await queued(batcher, 0)
        await model.entered()
        tasks += await queued(batcher, 1, 2)
        tickets = batcher.admit(math.inf, 2)
        # About one second for each: the running batch, the two that wait, the two being decoded, the newcomer.
        assert batcher.wait(5) == pytest.approx(4.0, abs=0.3)
        with pytest.raises(Overloaded):
            batcher.admit(time.monotonic() + 3.5)
        for ticket in tickets:
            ticket.close()
        batcher.admit(time.monotonic() + 3.5)[0].close()
        model.release()
        await settle(tasks)


async def test_slow_batches_do_not_shut_short_deadlines_out_for_ever() -> None:
    """Nothing runs, so nothing could correct the prediction but a request that is let in to try."""
    model = Model()
    async with batching(model) as batcher:
        batcher.times.calibrate(0.001, 0.001, 4)
        for _ in range(40):
            batcher.times.observe(1, 0.5)  # a suspended machine, a debugger, a noisy neighbour
        assert batcher.times.predict(1) > 0.2
        answered = False
        give_up = time.monotonic() + 3
        while not answered and time.monotonic() < give_up:
            try:
                answered = value_of(await infer(batcher, 1, within=0.1)) == 1
            except Overloaded:
                await asyncio.sleep(0.05)
        assert answered
        # It has recovered for good, not for one request.
        assert value_of(await infer(batcher, 2, within=0.1)) == 2


async def test_a_failing_batch_does_not_teach_the_prediction_its_retries() -> None:
    """A poisonous batch runs one by one: that says nothing about how long a good one takes."""
    model = Model()
    model.fault = lambda values: time.sleep(0.02)  # type: ignore[func-returns-value]
    async with batching(model, max_batch=16) as batcher:
        batcher.times.calibrate(0.02, 0.021, 16)
        await settle(await queued(batcher, *range(1, 16), POISON))
        assert batcher.times.predict(1) == pytest.approx(0.02)


# Under load.


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    max_batch=st.integers(1, 9),
    max_queue=st.integers(1, 40),
    clients=st.lists(
        st.tuples(
            st.integers(0, 255),  # the image; 255 is poison
            st.integers(0, 8),  # when it arrives, ms
            st.sampled_from([math.inf, math.inf, 0.004, 1.0]),  # its deadline, seconds
            st.sampled_from([None, None, None, 0.001, 0.003]),  # when its client goes away, seconds
        ),
        min_size=1,
        max_size=80,
    ),
    seconds=st.sampled_from([0.0, 0.001, 0.004]),  # what a batch really takes
    predicted=st.sampled_from([INLINE_SECONDS / 10, 2 * INLINE_SECONDS]),  # inline, or on a thread
)
def test_everyone_gets_one_answer_and_it_is_his_own(
    max_batch: int,
    max_queue: int,
    clients: list[tuple[int, int, float, float | None]],
    seconds: float,
    predicted: float,
) -> None:
    model = Model()
    model.fault = lambda values: time.sleep(seconds)  # type: ignore[func-returns-value]

    async def client(batcher: Batcher, value: int, arrives: int, within: float, leaves: float | None) -> object:
        await asyncio.sleep(arrives / 1000)
        try:
            async with asyncio.timeout(leaves):
                return value_of(await infer(batcher, value, within))
        except (FoveaError, TimeoutError) as error:
            return type(error)

    async def everyone() -> None:
        async with batching(model, max_batch=max_batch, max_queue=max_queue, seconds=predicted) as batcher:
            answers = await asyncio.wait_for(asyncio.gather(*(client(batcher, *one) for one in clients)), 20)
            for (value, _, within, leaves), answer in zip(clients, answers, strict=True):
                allowed: set[object] = {Overloaded, BackendFailed if value == POISON else value}
                allowed |= {DeadlineExceeded} if within != math.inf else set()
                allowed |= {TimeoutError} if leaves is not None else set()
                assert answer in allowed
        assert all(len(batch) <= max_batch for batch in model.batches)

    asyncio.run(everyone())


# Predicting.


def test_batch_times_interpolate_what_was_measured() -> None:
    times = BatchTimes()
    assert times.predict(8) == 0.0  # not measured: nothing is refused
    times.calibrate(one=0.010, many=0.080, size=8)
    assert times.predict(1) == pytest.approx(0.010)
    assert times.predict(8) == pytest.approx(0.080)
    assert times.predict(4) == pytest.approx(0.040)


def test_batch_times_survive_odd_measurements() -> None:
    times = BatchTimes()
    times.calibrate(one=0.010, many=0.009, size=8)  # noise: a larger batch was faster
    assert 0 < times.predict(1) <= times.predict(8) < 0.011
    times.calibrate(one=0.010, many=0.010, size=1)
    assert times.predict(1) == pytest.approx(0.010)


def test_batch_times_follow_the_machine_there_and_back() -> None:
    times = BatchTimes()
    times.calibrate(one=0.010, many=0.080, size=8)
    for _ in range(20):
        times.observe(4, 0.120)  # three times slower than measured
    assert times.predict(4) == pytest.approx(0.120, rel=0.05)
    assert times.predict(1) == pytest.approx(0.030, rel=0.05)
    for _ in range(40):
        times.observe(1, 0.010)
    assert times.predict(1) == pytest.approx(0.010, rel=0.05)


def test_one_odd_batch_does_not_move_the_prediction_far() -> None:
    times = BatchTimes()
    times.calibrate(one=0.010, many=0.080, size=8)
    times.observe(1, 0.020)
    assert times.predict(1) < 0.015
