"""When to try again, and after how long. Pure: no clock, no sleep, no dice of its own, so that it can be tested as arithmetic.

Tried again:  429 (queue, quota, uploads) and 503 (not ready, model cold), where the server refused and nothing was done, and
              connections that were never made: any request.
              Connections that broke afterwards: idempotent requests only, as the first try may have been done.
Never:        every other status, broken answers, and timeouts (the server is likely still at work; a second try doubles it).
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from turret_client.errors import ConnectionFailed, Overloaded, TimedOut, TurretError, Unavailable

SECONDS = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently. All times in seconds.

    max_retries   tries after the first one; 0 turns retrying off
    backoff       wait before the first retry, doubled for each further one, up to `max_backoff`; the last half of it is jitter
    max_wait      the longest wait of all, whatever Retry-After asks for
    """

    max_retries: int = 3
    backoff: float = 0.25
    max_backoff: float = 8.0
    max_wait: float = 30.0

    def delay(self, error: TurretError, *, attempt: int, idempotent: bool, dice: float) -> float | None:
        """Seconds to wait before trying again after `error`; None to give up.

        `attempt` counts the retries already made; `dice` is a random number in [0, 1). The server's Retry-After is waited
        out in full (up to `max_wait`), plus the jittered back-off, so that many clients told the same do not return as one.
        """
        if attempt >= self.max_retries or not retryable(error, idempotent=idempotent):
            return None
        backoff = min(self.max_backoff, math.ldexp(self.backoff, min(attempt, 32))) * (0.5 + 0.5 * dice)
        return min(self.max_wait, (error.retry_after or 0.0) + backoff)


def retryable(error: TurretError, *, idempotent: bool) -> bool:
    """Whether another try of the same request can help and cannot harm."""
    if isinstance(error, TimedOut):
        return not error.sent
    if isinstance(error, ConnectionFailed):
        return idempotent or not error.sent
    return isinstance(error, Overloaded | Unavailable)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from `now` (aware) that a Retry-After header asks for: a number or an HTTP date. None if absent or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if SECONDS.fullmatch(value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - now).total_seconds())
