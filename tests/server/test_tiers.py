"""One tier by itself: its budget is never passed, sets are taken whole, nobody starves, and what fails or leaves holds nothing."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.room import Entry, Held
from server.tiers import LoadFailed, Tier, TooBig, Watch

Value = str


class Shelf:
    """What is physically there, by name; the size of a package is its number: "a3" takes 3. Checks every rule as it goes."""

    def __init__(self, budget: int, age_cap: float = 60.0) -> None:
        self.there: dict[str, int] = {}
        self.loads: list[str] = []
        self.evicted: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.broken: set[str] = set()
        self.users: dict[str, int] = {}
        self.seen: list[tuple[str, bool]] = []
        watch = Watch(loaded=lambda tier, seconds, failed: self.seen.append((tier, failed)))
        self.tier: Tier[Value] = Tier("device", budget, self.load, self.evict, age_cap, watch)

    async def load(self, digest: str) -> tuple[Value, int]:
        self.loads.append(digest)
        await (self.gates[digest].wait() if digest in self.gates else asyncio.sleep(0))
        if digest in self.broken:
            raise OSError(f"{digest} is broken")
        assert digest not in self.there
        self.there[digest] = size(digest)
        self.check()
        return digest, size(digest)

    def evict(self, entry: Entry[Value]) -> None:
        assert not self.users.get(entry.digest), "what is used is never evicted"
        assert entry.users == 0
        del self.there[entry.digest]
        self.evicted.append(entry.digest)

    def check(self) -> None:
        assert sum(self.there.values()) <= self.tier.bytes <= self.tier.budget

    async def acquire(self, *digests: str) -> Held[Value]:
        held = await self.tier.acquire({digest: size(digest) for digest in digests})
        for digest in digests:
            assert digest in self.there
            self.users[digest] = self.users.get(digest, 0) + 1
        return held

    def release(self, held: Held[Value]) -> None:
        for entry in held:
            self.users[entry.digest] -= 1
        self.tier.release(held)

    async def use(self, *digests: str) -> None:
        self.release(await self.acquire(*digests))


def size(digest: str) -> int:
    return int(digest[1:])


def drive(body: Callable[[Shelf], Awaitable[Any]], budget: int = 10, age_cap: float = 60.0) -> Shelf:
    shelf = Shelf(0)

    async def within_time() -> None:
        nonlocal shelf
        shelf = Shelf(budget, age_cap)
        await asyncio.wait_for(body(shelf), 20)
        shelf.check()
        await shelf.tier.close()

    asyncio.run(within_time())
    return shelf


def started(work: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(work)


async def until(so: Callable[[], bool]) -> None:
    """Waits until something is so."""
    for _ in range(20_000):
        if so():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_the_least_recently_used_goes_first_and_only_as_much_as_needed() -> None:
    async def body(shelf: Shelf) -> None:
        for digest in ("a3", "b3", "c3"):
            await shelf.use(digest)
        await shelf.use("a3")
        await shelf.use("d4")
        assert shelf.evicted == ["b3"]
        await shelf.use("e6")
        assert set(shelf.there) == {"d4", "e6"}

    drive(body)


def test_one_load_for_all_who_want_it() -> None:
    async def body(shelf: Shelf) -> None:
        shelf.gates["a3"] = asyncio.Event()
        wanting = [started(shelf.acquire("a3")) for _ in range(5)]
        await turns()
        assert "a3" not in shelf.tier
        assert shelf.tier.take(["a3"]) is None
        shelf.gates["a3"].set()
        for held in await asyncio.gather(*wanting):
            shelf.release(held)
        assert shelf.loads == ["a3"]
        held = shelf.tier.take(["a3"])
        assert held is not None
        shelf.tier.release(held)

    drive(body)


def test_a_load_waits_until_there_is_room() -> None:
    async def body(shelf: Shelf) -> None:
        first, second = await shelf.acquire("a5"), await shelf.acquire("b5")
        waits = started(shelf.acquire("c6"))
        await turns()
        assert shelf.tier.waiting == 1
        shelf.release(first)
        await turns()
        assert not waits.done(), "5 of 6 are free"
        assert set(shelf.there) == {"a5", "b5"}, "nothing goes before there is enough"
        shelf.release(second)
        shelf.release(await waits)
        assert set(shelf.there) == {"c6"}

    drive(body)


def test_those_who_find_theirs_go_first_and_the_others_in_their_order() -> None:
    async def body(shelf: Shelf) -> None:
        busy = await shelf.acquire("a8")
        order: list[str] = []

        async def ask(name: str, *digests: str) -> None:
            held = await shelf.acquire(*digests)
            order.append(name)
            shelf.release(held)

        asked = [started(ask("large", "b9")), started(ask("small", "c1")), started(ask("hot", "a8"))]
        await turns()
        assert order == ["hot"], "a small one does not take the room that a large one waits for"
        shelf.release(busy)
        await asyncio.gather(*asked)
        assert order == ["hot", "large", "small"]

    drive(body)


def test_a_set_is_taken_whole_or_not_at_all() -> None:
    async def body(shelf: Shelf) -> None:
        busy = await shelf.acquire("x6")
        waits = started(shelf.acquire("a3", "b3"))
        await turns()
        assert shelf.loads == ["x6"], "it does not hold one while it waits for the other"
        shelf.release(busy)
        shelf.release(await waits)
        assert set(shelf.there) == {"a3", "b3"}

    drive(body)


def test_what_turns_out_smaller_takes_no_more_than_it_is() -> None:
    async def body(shelf: Shelf) -> None:
        held = await shelf.tier.acquire({"a3": 9})
        assert shelf.tier.bytes == 3
        await shelf.use("b7")
        shelf.tier.release(held)

    drive(body)


def test_overlapping_sets_do_not_lock_each_other() -> None:
    async def body(shelf: Shelf) -> None:
        async def over_and_over(*digests: str) -> None:
            for _ in range(50):
                held = await shelf.acquire(*digests)
                await asyncio.sleep(0)
                shelf.release(held)

        await asyncio.gather(*(over_and_over(*some) for some in (("a4", "b4"), ("b4", "c4"), ("c4", "a4"), ("a4",), ("d8",))))

    drive(body)


def test_what_can_never_fit_is_refused_at_once() -> None:
    async def body(shelf: Shelf) -> None:
        with pytest.raises(TooBig, match="--device-memory"):
            await shelf.acquire("a6", "b5")
        pinned = await shelf.acquire("p4")
        shelf.tier.pin(pinned)
        shelf.release(pinned)
        with pytest.raises(TooBig, match="unpin"):
            await shelf.acquire("c7")
        assert shelf.loads == ["p4"]
        await shelf.use("p4", "d6")
        await shelf.use("e6")
        assert shelf.evicted == ["d6"], "pins are not evicted"
        shelf.tier.unpin("p4")
        await shelf.use("c7")
        assert set(shelf.there) == {"c7"}

    drive(body)


def test_a_pin_that_takes_the_room_of_those_who_wait() -> None:
    async def body(shelf: Shelf) -> None:
        busy = await shelf.acquire("p4")
        waits = started(shelf.acquire("a7"))
        await turns()
        shelf.tier.pin(busy)
        with pytest.raises(TooBig):
            await waits
        shelf.release(busy)
        await shelf.use("b6")

    drive(body)


def test_a_failed_load_fails_all_who_wait_and_leaves_nothing() -> None:
    async def body(shelf: Shelf) -> None:
        shelf.broken, shelf.gates["x3"] = {"x3"}, asyncio.Event()
        wanting = [started(shelf.acquire("a3", "x3")) for _ in range(3)]
        await turns()
        shelf.gates["x3"].set()
        ends = await asyncio.gather(*wanting, return_exceptions=True)
        assert [(type(end), type(end.__cause__)) for end in ends] == [(LoadFailed, OSError)] * 3
        assert {end.digest for end in ends if isinstance(end, LoadFailed)} == {"x3"}
        assert shelf.tier.bytes == 3
        assert "x3" not in shelf.tier
        await shelf.use("b9")
        assert set(shelf.there) == {"b9"}, "the failed ones hold nothing"
        shelf.broken = set()
        await shelf.use("x3")
        assert shelf.loads.count("x3") == 2
        assert shelf.seen.count(("device", True)) == 1

    drive(body)


def test_a_failure_while_others_ask_again_does_not_touch_their_count() -> None:
    async def body(shelf: Shelf) -> None:
        shelf.broken, shelf.gates["x3"] = {"x3"}, asyncio.Event()
        failing = started(shelf.acquire("x3"))
        await turns()
        shelf.gates["x3"].set()
        await turns(1)
        shelf.broken = set()
        again = await shelf.acquire("x3")
        with pytest.raises(LoadFailed):
            await failing
        busy = await shelf.acquire("a7")
        assert not await tried(shelf, "b3"), "x3 is used"
        shelf.release(again)
        assert await tried(shelf, "b3"), "by nobody else"
        shelf.release(busy)

    drive(body)


async def tried(shelf: Shelf, *digests: str) -> bool:
    """Whether a set can be had now."""
    asking = started(shelf.acquire(*digests))
    await turns(10)
    if asking.done():
        shelf.release(asking.result())
        return True
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return False


def test_who_leaves_while_waiting_lets_the_next_one_through() -> None:
    async def body(shelf: Shelf) -> None:
        busy = await shelf.acquire("a5")
        leaves, stays = started(shelf.acquire("b9")), started(shelf.acquire("c5"))
        await turns()
        assert not stays.done()
        leaves.cancel()
        shelf.release(await stays)
        assert shelf.tier.waiting == 0
        shelf.release(busy)

    drive(body)


def test_who_leaves_while_it_loads_leaves_it_to_the_others() -> None:
    async def body(shelf: Shelf) -> None:
        shelf.gates["a5"] = asyncio.Event()
        leaves, stays = started(shelf.acquire("a5")), started(shelf.acquire("a5"))
        await turns()
        leaves.cancel()
        await turns()
        shelf.gates["a5"].set()
        shelf.release(await stays)
        assert shelf.loads == ["a5"]
        await shelf.use("b9")
        assert shelf.evicted == ["a5"]

    drive(body)


def test_who_leaves_as_it_is_served_holds_nothing() -> None:
    async def body(shelf: Shelf) -> None:
        busy = await shelf.acquire("a9")
        leaves = started(shelf.acquire("b5"))
        await turns()
        shelf.release(busy)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        await turns()
        assert await tried(shelf, "c9")

    drive(body)


def test_a_cold_one_is_not_starved_by_hot_ones() -> None:
    """Three hot ones, always in use by overlapping requests, fill the tier; a cold one comes and gets its turn."""

    async def body(shelf: Shelf) -> None:
        served = asyncio.Event()

        async def hot(digest: str) -> None:
            """Requests one after the other, each admitted before the one before it ends, as long as that is allowed."""
            held = await shelf.tier.acquire({digest: size(digest)})
            while not served.is_set():
                await asyncio.sleep(0)
                following = shelf.tier.take([digest])
                shelf.tier.release(held)
                held = following or await shelf.tier.acquire({digest: size(digest)})
            shelf.tier.release(held)

        async def cold() -> None:
            await shelf.use("x5")
            served.set()

        users = [started(hot(digest)) for digest in ("a3", "b3", "c4")]
        await turns()
        assert set(shelf.there) == {"a3", "b3", "c4"}
        asking = started(cold())
        await turns(20)
        assert not asking.done(), "by themselves the hot ones leave no room"
        await asyncio.gather(asking, *users)
        assert shelf.loads.count("x5") == 1

    drive(body, age_cap=0.3)


def test_closing_takes_the_least_recently_used_and_opens_again() -> None:
    async def body(shelf: Shelf) -> None:
        old, new = await shelf.acquire("a5"), await shelf.acquire("b5")
        cold = started(shelf.acquire("x4"))
        await until(lambda: not shelf.tier.open("a5"))
        assert shelf.tier.open("b5"), "closing the one makes enough room"
        late = started(shelf.acquire("a5"))
        again = await shelf.acquire("b5")
        await turns()
        assert not late.done(), "who wants a closed one waits behind"
        cold.cancel()
        shelf.release(await late)
        assert shelf.tier.open("a5"), "nobody waits any more"
        for held in (old, new, again):
            shelf.release(held)
        assert shelf.evicted == []

    drive(body, age_cap=0.01)


def test_spare_ones_go_first_and_make_room_for_offers() -> None:
    async def body(shelf: Shelf) -> None:
        await shelf.use("a3")
        await shelf.use("b3")
        assert not shelf.tier.spares("c5", 5)
        shelf.tier.cool("b3")
        assert shelf.tier.spares("c5", 5)
        assert not shelf.tier.spares("d8", 8), "a3 is wanted"
        await shelf.use("b3")
        assert not shelf.tier.spares("c5", 5), "b3 was wanted again"
        shelf.tier.cool("b3")
        shelf.there["o7"] = 7
        shelf.tier.offer("o7", "o7", 7)
        assert shelf.evicted == ["b3"]
        assert "o7" in shelf.tier
        shelf.tier.offer("x8", "x8", 8)
        assert "x8" not in shelf.tier
        await shelf.use("e4")
        assert shelf.evicted == ["b3", "o7"], "the spare one, although it came last"

    drive(body)


def test_settle_and_remove() -> None:
    async def body(shelf: Shelf) -> None:
        shelf.gates["a5"] = asyncio.Event()
        using = started(shelf.acquire("a5"))
        await turns()
        settling = started(shelf.tier.settle("a5"))
        await turns()
        assert not settling.done()
        assert not shelf.tier.remove("a5")
        shelf.gates["a5"].set()
        await settling
        held = await using
        assert not shelf.tier.remove("a5"), "it is used"
        shelf.tier.pin(held)
        shelf.release(held)
        assert shelf.tier.remove("a5"), "pinned or not"
        assert (shelf.there, shelf.tier.bytes, shelf.tier.limit) == ({}, 0, 10)
        assert shelf.tier.remove("never-there")

    drive(body)


@pytest.mark.parametrize("seed", range(12))
def test_any_traffic(seed: int) -> None:
    """Sets, failures, hang-ups, pins and removals at random: the budget holds at every load, everybody ends, the counts come out even."""
    chance = random.Random(seed)
    names = [f"{letter}{chance.randrange(1, 5)}" for letter in "abcdefghij"]

    async def body(shelf: Shelf) -> None:
        shelf.broken = set(names[:1])

        async def request() -> None:
            wanted = chance.sample(names, chance.choice([1, 1, 1, 2, 3]))
            try:
                held = await shelf.acquire(*wanted)
            except TooBig:
                return
            try:
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                    shelf.check()
                    assert all(digest in shelf.there for digest in wanted)
                if chance.random() < 0.05:
                    shelf.tier.pin(held[:1])
            finally:
                shelf.release(held)

        tasks: list[asyncio.Future[Any]] = []
        for _ in range(400):
            tasks.append(started(request()))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            kind = chance.random()
            if kind < 0.1:
                chance.choice(tasks).cancel()
            elif kind < 0.3:
                shelf.tier.unpin(chance.choice(names))
            elif kind < 0.35:
                shelf.tier.remove(chance.choice(names))
        for name in names:
            shelf.tier.unpin(name)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), LoadFailed, asyncio.CancelledError}
        assert not any(shelf.users.values())
        for name in names:
            shelf.tier.unpin(name)
        assert shelf.tier.bytes == sum(shelf.there.values())
        await shelf.use("z10")
        assert set(shelf.there) == {"z10"}, "everything else could go"

    drive(body, age_cap=chance.choice([0.0, 0.002, 60.0]))
