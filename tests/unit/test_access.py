"""The ring of keys over a real store: who may ask, who may change the server, and how often."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.access.keys import Key, Scope, bearer, id_in, new_key
from service.access.rates import Rates, parse_rate
from service.access.ring import Policy, Ring
from service.errors import BackendUnavailable, Forbidden, Overloaded, Unauthorized
from service.store.shared import SharedStore
from service.store.store import Store, UnknownKey

LOOPBACK = Policy(loopback=True, insecure=False, admin=None)
EXPOSED = Policy(loopback=False, insecure=False, admin=None)
INSECURE = Policy(loopback=False, insecure=True, admin=None)


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[SharedStore]:
    """A store that is looked at only when told to."""
    store = SharedStore(Store(f"sqlite:///{tmp_path}/keys.db"), poll_seconds=3600)
    store.store.open()
    yield store
    await store.close()


def make(shared: SharedStore, *scopes: Scope, rate: str | None = None) -> tuple[Key, str]:
    key, secret = new_key("a name", scopes or ("infer",), rate)
    shared.store.keys.add(key)
    return key, secret


# Secrets.


def test_of_a_secret_only_its_hash_is_kept() -> None:
    key, secret = new_key("ci", ("infer",))
    assert id_in(secret) == key.id
    assert key.opens(secret)
    assert not key.opens(secret[:-1] + ("a" if secret[-1] != "a" else "b"))
    assert not key.opens("ü" * len(secret))
    assert secret.split("_", 2)[2] not in repr(key)
    assert repr(key.digest) not in repr(key)
    assert len({new_key("ci", ("infer",))[1] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("secret", ["", "fovea_", "fovea_" + "0" * 55, "fovea_" + "0" * 57, "x" * 62])
def test_what_looks_like_no_secret(secret: str) -> None:
    assert id_in(secret) is None


def test_a_secret_that_was_made_elsewhere_is_taken_as_it_is() -> None:
    secret = new_key("elsewhere", ("infer",))[1]
    key, same = new_key("ci", ("infer",), secret=secret)
    assert same == secret
    assert key.opens(secret)
    assert id_in(secret) == key.id
    for wrong in ("", secret[:-1], secret + "a", secret + "\n", secret.upper(), secret.replace("_", "-")):
        with pytest.raises(ValueError, match="a secret is fovea_"):
            new_key("ci", ("infer",), secret=wrong)


@pytest.mark.parametrize(
    ("header", "secret"),
    [("Bearer a", "a"), ("bearer  a ", "a"), ("Bearer", ""), ("Basic a", None), ("a", None), ("", None)],
)
def test_headers(header: str, secret: str | None) -> None:
    assert bearer(header) == secret


# Who may ask.


async def test_nobody_is_let_in_before_the_keys_have_been_read(shared: SharedStore) -> None:
    _, secret = make(shared)
    for policy in (LOOPBACK, EXPOSED, INSECURE):
        ring = Ring(shared, Rates(), policy)
        for sent in (None, secret):
            with pytest.raises(BackendUnavailable):
                ring.check(sent)


@pytest.mark.parametrize(
    ("policy", "open_before", "open_after"),
    [(LOOPBACK, True, False), (EXPOSED, False, False), (INSECURE, True, True)],
)
async def test_when_a_key_is_needed(shared: SharedStore, policy: Policy, open_before: bool, open_after: bool) -> None:
    """Before the first key, while there is a valid one, and after the last was revoked."""
    ring = Ring(shared, Rates(), policy)
    await shared.refresh()
    assert ring.needed is not open_before
    key, secret = make(shared)
    await shared.refresh()
    assert ring.needed
    caller = ring.check(secret)
    assert caller is not None
    assert caller.id == key.id
    for wrong in (None, "", secret + "x", secret.swapcase(), secret.replace(key.id, "0" * 12)):
        with pytest.raises(Unauthorized):
            ring.check(wrong)
    shared.store.keys.revoke(key.id)
    await shared.refresh()
    assert ring.needed is not open_after
    if ring.needed:
        with pytest.raises(Unauthorized, match="was revoked"):
            ring.check(secret)
    with pytest.raises(Unauthorized, match="was revoked"):
        caller.charge()


async def test_a_key_is_revoked_once_and_stays_so(shared: SharedStore) -> None:
    key, _ = make(shared)
    first = shared.store.keys.revoke(key.id)
    revision = shared.store.revision()
    assert shared.store.keys.revoke(key.id) == first
    assert shared.store.revision() == revision
    for unknown in ("", "nobody", "a\x00b"):
        with pytest.raises(UnknownKey):
            shared.store.keys.revoke(unknown)


@pytest.mark.parametrize(("told", "may"), [(None, True), (True, True), (False, False)])
async def test_who_may_change_the_server(shared: SharedStore, told: bool | None, may: bool) -> None:
    _, infer = make(shared, "infer")
    _, admin = make(shared, "admin")
    ring = Ring(shared, Rates(), Policy(loopback=True, insecure=False, admin=told))
    await shared.refresh()
    with pytest.raises(Forbidden):
        ring.permit_change(ring.check(infer))
    if may:
        ring.permit_change(ring.check(admin))
    else:
        with pytest.raises(Forbidden, match="FOVEA_ADMIN"):
            ring.permit_change(ring.check(admin))


@pytest.mark.parametrize(
    ("loopback", "admin", "may"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
async def test_who_may_without_keys(shared: SharedStore, loopback: bool, admin: bool | None, may: bool) -> None:
    ring = Ring(shared, Rates(), Policy(loopback, insecure=True, admin=admin))
    if may:
        ring.permit_change(None)
    else:
        with pytest.raises(Forbidden, match="FOVEA_ADMIN=true"):
            ring.permit_change(None)


async def test_a_key_whose_rate_is_not_understood_does_not_go_without(shared: SharedStore) -> None:
    _, odd = make(shared, rate="3/fortnight")
    _, good = make(shared)
    ring = Ring(shared, Rates(), LOOPBACK)
    await shared.refresh()
    assert ring.check(good) is not None
    with pytest.raises(Unauthorized):
        ring.check(odd)


# How often.


@pytest.mark.parametrize(
    "text", ["", "often", "5", "-1/second", "0/second", "10001/second", "1/second;2/minute", "1/s", "3/fortnight"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "amount", "seconds"), [("100/second", 100, 1), ("30 per minute", 30, 60), ("5/10 seconds", 5, 10)]
)
def test_rates(text: str, amount: int, seconds: int) -> None:
    rate = parse_rate(text)
    assert (rate.amount, rate.get_expiry()) == (amount, seconds)


def test_a_rate_holds_in_every_window() -> None:
    """Never more than four within any second, whenever that begins; and four, where so many are asked."""
    rates, rate = Rates(), parse_rate("4/second")
    taken: list[float] = []
    waits: list[float] = []
    give_up = time.monotonic() + 2.6
    while time.monotonic() < give_up:
        now = time.time()
        try:
            assert rates.take("a", rate) is None
            taken.append(now)
        except Overloaded as error:
            waits.append(error.retry_after or 0.0)
            assert rates.take("b", parse_rate("10000/second")) is None
        time.sleep(0.005)
    assert len(taken) == 12
    assert all(later - earlier > 0.99 for earlier, later in zip(taken, taken[4:], strict=False))
    assert 0 < min(waits) < 0.2
    assert max(waits) <= 1.0
