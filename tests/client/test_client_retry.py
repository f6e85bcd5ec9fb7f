"""When to try again, as arithmetic."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turret_client import errors
from turret_client.retry import RetryPolicy, parse_retry_after, retryable

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
POLICY = RetryPolicy()
DICE = st.floats(0, 1, exclude_max=True)
LOST = errors.ConnectionFailed("broke", sent=True)
UNSENT = errors.ConnectionFailed("refused", sent=False)


@pytest.mark.parametrize(
    ("error", "idempotent", "expected"),
    [
        (errors.Overloaded("full", status=429), False, True),
        (errors.Unavailable("not ready", status=503), False, True),
        (UNSENT, False, True),
        (LOST, True, True),
        (LOST, False, False),
        (errors.TimedOut("slow", sent=True), True, False),
        (errors.TimedOut("no connection", sent=False), False, True),
        (errors.BadRequest("wrong", status=400), True, False),
        (errors.ServerError("bug", status=500), True, False),
        (errors.DeadlineExceeded("late", status=504), True, False),
        (errors.UnexpectedResponse("html"), True, False),
        (errors.DigestMismatch("bytes"), True, False),
        (errors.InvalidArgument("name"), True, False),
    ],
)
def test_what_is_tried_again(error: errors.TurretError, idempotent: bool, expected: bool) -> None:
    assert retryable(error, idempotent=idempotent) is expected
    assert (POLICY.delay(error, attempt=0, idempotent=idempotent, dice=0.5) is not None) is expected


@given(st.integers(0, 10_000), DICE, st.one_of(st.none(), st.floats(0, 1e12)), st.integers(0, 10_000))
def test_every_wait_is_bounded_and_the_retries_are(attempt: int, dice: float, retry_after: float | None, max_retries: int) -> None:
    policy = RetryPolicy(max_retries=max_retries)
    error = errors.Overloaded("full", status=429, retry_after=retry_after)
    wait = policy.delay(error, attempt=attempt, idempotent=False, dice=dice)
    if attempt >= max_retries:
        assert wait is None
    else:
        assert wait is not None
        assert min(retry_after or 0.0, policy.max_wait) <= wait <= policy.max_wait


@given(st.integers(0, 4), DICE)
def test_back_off_doubles_and_half_of_it_is_jitter(attempt: int, dice: float) -> None:
    wait = RetryPolicy(max_retries=9).delay(UNSENT, attempt=attempt, idempotent=True, dice=dice)
    assert wait is not None
    assert 0.5 * 0.25 * 2**attempt <= wait <= 0.25 * 2**attempt


def test_no_retries_when_turned_off() -> None:
    assert RetryPolicy(max_retries=0).delay(UNSENT, attempt=0, idempotent=True, dice=0) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("٣", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("Tue, 24 Nov 2026 12:00:09 GMT", 9.0),
        ("Tue, 24 Nov 2026 12:00:09 -0000", 9.0),
        ("Tue, 24 Nov 2026 14:00:00 +0200", 0.0),
        ("Tue, 24 Nov 2020 12:00:00 GMT", 0.0),
        ("Tue, 99 Nov 2026 12:00:00 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.integers(-(10**6), 10**6))
def test_retry_after_as_any_date(offset: int) -> None:
    assert parse_retry_after(format_datetime(NOW + timedelta(seconds=offset), usegmt=True), NOW) == max(0, offset)


@given(st.text())
def test_no_header_breaks_it(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or seconds >= 0
