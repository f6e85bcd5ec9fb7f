"""What each key may use up: requests and tokens per minute, as token buckets that hold one minute's worth.

Whole numbers throughout: a bucket of n per minute gains n parts per nanosecond and one unit costs `MINUTE` parts, so that what a
Retry-After promises is exact.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.core import Caller

MINUTE = 60 * 10**9
SECOND = 10**9


@dataclass(frozen=True, slots=True)
class Limits:
    """Units per minute of one key; None: as many as it likes."""

    requests: int | None = None
    tokens: int | None = None


class QuotaExceeded(Exception):
    """A key has used up its minute. `retry_after` are the whole seconds after which the same request is let through."""

    def __init__(self, caller: str, kind: str, limit: int, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(
            f"The key '{caller}' may use {limit} {kind} per minute and has not enough of them left: try again in {retry_after} s."
        )


class TooBigForQuota(Exception):
    """A request that needs more than a whole minute's quota, so that waiting would not help."""

    def __init__(self, caller: str, kind: str, limit: int, asked: int) -> None:
        super().__init__(f"The request has {asked} {kind} and the key '{caller}' may use {limit} per minute: send less at a time.")


class Bucket:
    """One quota of one key: `limit` units per minute. `parts` is what it holds, as of `at` (ns)."""

    __slots__ = ("at", "limit", "parts")

    def __init__(self, limit: int, at: int, parts: int | None = None) -> None:
        self.limit, self.at = limit, at
        self.parts = limit * MINUTE if parts is None else min(parts, limit * MINUTE)

    def fill(self, now: int) -> None:
        """Adds what time has brought."""
        self.parts = min(self.parts + self.limit * max(now - self.at, 0), self.limit * MINUTE)
        self.at = now

    def take(self, units: int) -> int:
        """Takes units and returns 0; or takes nothing and returns the whole seconds after which they will be there."""
        missing = units * MINUTE - self.parts
        if missing > 0:
            return -(-missing // (self.limit * SECOND))
        self.parts -= units * MINUTE
        return 0

    def give(self, units: int) -> None:
        """Gives units back, as far as there is room."""
        self.parts = min(self.parts + units * MINUTE, self.limit * MINUTE)

    @property
    def left(self) -> int:
        """Whole units that can be taken now."""
        return self.parts // MINUTE

    @property
    def full_in(self) -> int:
        """Nanoseconds until it is full again."""
        return -(-(self.limit * MINUTE - self.parts) // self.limit)


@dataclass(slots=True)
class Buckets:
    """The buckets of one key."""

    requests: Bucket | None = None
    tokens: Bucket | None = None


class Quotas:
    """The buckets of all keys. `clock` gives nanoseconds that never go back."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._keys: dict[str, Buckets] = {}

    def set(self, limits: Mapping[str, Limits]) -> None:
        """Takes over the limits of the keys that there are now. What a key has used stays used; keys that are gone are forgotten."""
        now = self._clock()
        self._keys = {name: self._kept(self._keys.get(name, Buckets()), wanted, now) for name, wanted in limits.items()}

    def charge_request(self, caller: Caller) -> None:
        """Takes one request; raises QuotaExceeded."""
        self._charge(caller, "requests", 1)

    def charge_tokens(self, caller: Caller, tokens: int) -> None:
        """Takes the tokens of a request; raises QuotaExceeded, or TooBigForQuota for more than a minute's."""
        self._charge(caller, "tokens", tokens)

    def refund_tokens(self, caller: Caller, tokens: int) -> None:
        """Gives back tokens that were charged and did not run."""
        buckets = self._keys.get(caller.name)
        if buckets is not None and buckets.tokens is not None:
            buckets.tokens.fill(self._clock())
            buckets.tokens.give(tokens)

    def headers(self, caller: Caller) -> list[tuple[bytes, bytes]]:
        """What is left to a key, in the headers of OpenAI's API; none for a key without quotas."""
        found: list[tuple[bytes, bytes]] = []
        buckets = self._keys.get(caller.name)
        if buckets is None:
            return found
        for kind, bucket in ((b"requests", buckets.requests), (b"tokens", buckets.tokens)):
            if bucket is not None:
                bucket.fill(self._clock())
                found += [
                    (b"x-ratelimit-limit-" + kind, b"%d" % bucket.limit),
                    (b"x-ratelimit-remaining-" + kind, b"%d" % bucket.left),
                    (b"x-ratelimit-reset-" + kind, _duration(bucket.full_in)),
                ]
        return found

    def _charge(self, caller: Caller, kind: str, units: int) -> None:
        buckets = self._keys.get(caller.name)
        bucket: Bucket | None = None if buckets is None else getattr(buckets, kind)
        if bucket is None:
            return
        if units > bucket.limit:
            raise TooBigForQuota(caller.name, kind, bucket.limit, units)
        bucket.fill(self._clock())
        wait = bucket.take(units)
        if wait:
            raise QuotaExceeded(caller.name, kind, bucket.limit, wait)

    def _kept(self, old: Buckets, wanted: Limits, now: int) -> Buckets:
        return Buckets(_bucket(old.requests, wanted.requests, now), _bucket(old.tokens, wanted.tokens, now))


def _bucket(old: Bucket | None, limit: int | None, now: int) -> Bucket | None:
    """The bucket of a limit: as it was where the limit is, with what was used still used where it is another one."""
    if limit is None or old is None:
        return None if limit is None else Bucket(limit, now)
    if old.limit == limit:
        return old
    old.fill(now)
    used = old.limit * MINUTE - old.parts
    return Bucket(limit, now, max(limit * MINUTE - used, 0))


def _duration(nanoseconds: int) -> bytes:
    """A time as OpenAI writes it: 120ms, 8s, 1m0s."""
    if nanoseconds < SECOND:
        return b"%dms" % -(-nanoseconds // 10**6)
    minutes, seconds = divmod(-(-nanoseconds // SECOND), 60)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds
