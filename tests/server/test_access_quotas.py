"""Quotas by a clock that the test turns: what is let through, when it is let through again, and what the headers say."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from callers import bearer, entry, write
from harness import error, serving
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.access.quotas import MINUTE, SECOND, Limits, QuotaExceeded, Quotas, TooBigForQuota
from server.core import LOCAL, Caller
from server.errors import as_api_error
from server.scheduler import QueueFull

ONE, OTHER = Caller("one"), Caller("other")


class Clock:
    """Nanoseconds that pass when told."""

    def __init__(self) -> None:
        self.now = 123_456_789

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    quotas = Quotas(clock)
    quotas.set({"one": Limits(requests=3, tokens=100), "other": Limits(requests=3)})
    return quotas


def test_a_minute_s_worth_at_once_then_as_time_passes(quotas: Quotas, clock: Clock) -> None:
    for _ in range(3):
        quotas.charge_request(ONE)
    for _ in range(2):
        with pytest.raises(QuotaExceeded, match=r"^The key 'one' may use 3 requests per minute .* try again in 20 s\.$") as refused:
            quotas.charge_request(ONE)
        assert refused.value.retry_after == 20
    quotas.charge_request(OTHER)
    clock.now += 20 * SECOND
    quotas.charge_request(ONE)
    clock.now += 3600 * SECOND
    for _ in range(3):
        quotas.charge_request(ONE)
    with pytest.raises(QuotaExceeded):
        quotas.charge_request(ONE)


def test_tokens(quotas: Quotas, clock: Clock) -> None:
    quotas.charge_tokens(ONE, 100)
    with pytest.raises(QuotaExceeded) as refused:
        quotas.charge_tokens(ONE, 10)
    assert refused.value.retry_after == 6
    clock.now += 6 * SECOND
    quotas.charge_tokens(ONE, 10)
    quotas.charge_tokens(ONE, 0)
    with pytest.raises(
        TooBigForQuota, match=r"^The request has 101 tokens and the key 'one' may use 100 per minute: send less at a time\.$"
    ):
        quotas.charge_tokens(ONE, 101)
    quotas.charge_request(ONE)
    quotas.charge_tokens(OTHER, 10**9)
    quotas.charge_tokens(LOCAL, 10**9)
    quotas.charge_request(Caller("gone"))


def test_tokens_that_did_not_run_are_given_back(quotas: Quotas) -> None:
    quotas.charge_tokens(ONE, 100)
    quotas.refund_tokens(ONE, 40)
    quotas.charge_tokens(ONE, 40)
    with pytest.raises(QuotaExceeded):
        quotas.charge_tokens(ONE, 1)
    quotas.refund_tokens(ONE, 10**9)
    with pytest.raises(TooBigForQuota):
        quotas.charge_tokens(ONE, 101)
    quotas.charge_tokens(ONE, 100)
    for caller in (OTHER, LOCAL, Caller("gone")):
        quotas.refund_tokens(caller, 5)


def test_the_errors_of_the_wire(quotas: Quotas) -> None:
    exceeded = as_api_error(QuotaExceeded("one", "tokens", 100, 7))
    assert (exceeded.status, exceeded.code, exceeded.retry_after) == (429, "quota_exceeded", 7)
    assert (as_api_error(TooBigForQuota("one", "tokens", 1, 2)).status, as_api_error(TooBigForQuota("one", "tokens", 1, 2)).code) == (
        422,
        "too_big_for_quota",
    )


@given(st.integers(1, 10**9), st.lists(st.tuples(st.integers(0, 3 * MINUTE), st.floats(0, 1)), min_size=1, max_size=20))
def test_retry_after_is_true_and_no_longer_than_needed(limit: int, steps: list[tuple[int, float]]) -> None:
    """After that many seconds the same request is let through; a second earlier it is not."""
    clock = Clock()
    quotas = Quotas(clock)
    quotas.set({"one": Limits(tokens=limit)})
    for passed, part in steps:
        clock.now += passed
        units = max(round(part * limit), 1)
        try:
            quotas.charge_tokens(ONE, units)
        except QuotaExceeded as refused:
            assert refused.retry_after >= 1  # noqa: PT017
            if refused.retry_after > 1:
                clock.now += (refused.retry_after - 1) * SECOND
                with pytest.raises(QuotaExceeded):
                    quotas.charge_tokens(ONE, units)
                clock.now += SECOND
            else:
                clock.now += SECOND
            quotas.charge_tokens(ONE, units)


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, MINUTE), st.integers(1, 1000)), max_size=40))
def test_never_more_than_the_limit_allows(limit: int, steps: list[tuple[int, int]]) -> None:
    """In any stretch of time no more passes than what it brings and one minute's worth."""
    clock = Clock()
    began, taken = clock.now, 0
    quotas = Quotas(clock)
    quotas.set({"one": Limits(tokens=limit)})
    for passed, units in steps:
        clock.now += passed
        try:
            quotas.charge_tokens(ONE, units)
            taken += units
        except (QuotaExceeded, TooBigForQuota):
            continue
    assert taken * MINUTE <= limit * (clock.now - began + MINUTE)


# Headers


def headers(quotas: Quotas, caller: Caller) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in quotas.headers(caller)}


def test_what_is_left_as_openai_says_it(quotas: Quotas, clock: Clock) -> None:
    assert headers(quotas, LOCAL) == {}
    assert headers(quotas, OTHER) == {"limit-requests": "3", "remaining-requests": "3", "reset-requests": "0ms"}
    quotas.charge_request(ONE)
    quotas.charge_tokens(ONE, 100)
    assert headers(quotas, ONE) == {
        "limit-requests": "3",
        "remaining-requests": "2",
        "reset-requests": "20s",
        "limit-tokens": "100",
        "remaining-tokens": "0",
        "reset-tokens": "1m0s",
    }
    clock.now += 59_880_000_001
    assert (headers(quotas, ONE)["remaining-tokens"], headers(quotas, ONE)["reset-tokens"]) == ("99", "120ms")
    assert headers(quotas, ONE)["remaining-requests"] == "3"


# A file that changes


def test_what_was_used_stays_used(quotas: Quotas) -> None:
    for _ in range(3):
        quotas.charge_request(ONE)
        quotas.charge_request(OTHER)
    quotas.set({"one": Limits(requests=3, tokens=50), "new": Limits(requests=1)})
    with pytest.raises(QuotaExceeded):
        quotas.charge_request(ONE)
    quotas.charge_tokens(ONE, 50)
    assert headers(quotas, OTHER) == {}, "a key that is gone is forgotten"
    quotas.set({"one": Limits(requests=5), "other": Limits(requests=3)})
    assert headers(quotas, ONE)["remaining-requests"] == "2", "three of now five are used"
    assert "remaining-tokens" not in headers(quotas, ONE)
    assert headers(quotas, OTHER)["remaining-requests"] == "3"
    quotas.set({"one": Limits(requests=1)})
    assert headers(quotas, ONE)["remaining-requests"] == "0"


# Over the wire


@pytest.fixture
def limited(backbone: Path, tmp_path: Path) -> Iterator[TestClient]:
    known = (entry("few", *("predict", "publish"), requests_per_minute=2, tokens_per_minute=50), entry("root", "admin"))
    with serving(backbone, tmp_path / "store", api_keys=write(tmp_path / "keys.toml", *known)) as client:
        client.app.state.services.access.quotas._clock = Clock()
        yield client


def test_requests_over_the_wire(limited: TestClient) -> None:
    clock = limited.app.state.services.access.quotas._clock
    first = limited.get("/v1/models", headers=bearer("few"))
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert first.headers["x-ratelimit-remaining-tokens"] == "50"
    body = {"model": "base", "input": "t1"}
    assert limited.post("/v1/embeddings", json=body, headers=bearer("few")).headers["x-ratelimit-remaining-requests"] == "0"
    for path, sent in (("/v1/embeddings", body), ("/v1/predict", {}), ("/models/base", {})):
        refused = limited.post(path, json=sent, headers=bearer("few"))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert error(limited.post("/v1/embeddings", json=body, headers=bearer("few")), 429, "quota_exceeded")["type"] == "rate_limit_error"
    package = tiny.adapter(tiny.KINDS["pfeiffer"], None)
    published = limited.put("/v1/adapters/x", content=package, headers=bearer("few"))
    assert published.status_code == 201, "publishing is not counted"
    assert "x-ratelimit-limit-requests" not in published.headers
    assert "x-ratelimit-limit-requests" not in limited.get("/v1/models", headers=bearer("root")).headers
    clock.now += 30 * SECOND
    assert limited.post("/v1/embeddings", json=body, headers=bearer("few")).status_code == 200


def test_a_request_that_may_not_be_made_costs_nothing(limited: TestClient) -> None:
    for _ in range(5):
        assert limited.get("/metrics", headers=bearer("few")).status_code == 403
        assert limited.get("/v1/models").status_code == 401
    assert limited.get("/v1/models", headers=bearer("few")).headers["x-ratelimit-remaining-requests"] == "1"


def test_what_the_queue_has_no_room_for_costs_no_tokens(limited: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*reservation: object) -> None:
        raise QueueFull(3)

    monkeypatch.setattr(limited.app.state.services.scheduler, "reserve", full)
    answer = limited.post("/v1/embeddings", json={"model": "base", "input": "t1 t2"}, headers=bearer("few"))
    error(answer, 429, "queue_full")
    assert answer.headers["x-ratelimit-remaining-tokens"] == "50"


def test_what_the_quota_does_not_allow_takes_no_part_of_the_queue(limited: TestClient) -> None:
    answer = limited.post("/v1/embeddings", json={"model": "base", "input": ["t1 " * 30, "t2 " * 30]}, headers=bearer("few"))
    error(answer, 422, "too_big_for_quota")
    assert limited.app.state.services.scheduler.queued_tokens == 0
