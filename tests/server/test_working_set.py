"""More packages than the device has room for, asked for at once: every answer is the solo answer, whatever came and went meanwhile."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from adapter_store.manifest import Manifest
from server.app import create_app
from server.core import Caller, Terms
from server.engine.engine import Engine
from server.inference import Answer, Ask, Inference, Source
from server.publishing import Upload
from server.services import Services
from server.settings import Settings
from server.tasks.parameters import Parameters

TOLERANCE = 1e-5
KINDS: list[dict[str, Any]] = [
    {"bottleneck": tiny.KINDS["pfeiffer"]},
    {"bottleneck": tiny.KINDS["houlsby"]},
    {"bottleneck": tiny.KINDS["gated"]},
    {"bottleneck": tiny.KINDS["compacter"]},
    tiny.OTHERS["lora"],
    tiny.OTHERS["mam"],
]
NAMES = [f"p{number:02d}" for number in range(24)]
COMPOSED = ["average(p00, p02)", "stack(p01, p03)", "average(p06:0.3, p12:0.7)"]
MODELS = [*NAMES, *COMPOSED, "base"]

Body = Callable[[Services], Awaitable[Any]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone and a store of 24 packages of six kinds."""
    folder = tmp_path_factory.mktemp("churn")
    tiny.save_backbone(folder / "backbone")
    app = create_app(settings(folder))
    for seed, name in enumerate(NAMES):
        path = folder / f"{name}.safetensors"
        manifest = Manifest(methods=KINDS[seed % len(KINDS)], head=tiny.classifier("a", "b", "c"), backbone=tiny.SPEC)
        path.write_bytes(tiny.package(manifest, seed))
        app.state.services.publisher.package(path, Upload(name))
    return folder


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(backbone=str(folder / "backbone"), store=str(folder / "store"), threads=1, device="cpu", **more)


@asynccontextmanager
async def running(folder: Path, **more: Any) -> AsyncIterator[Services]:
    """The parts of a server that runs."""
    app = create_app(settings(folder, **more))
    async with app.router.lifespan_context(app):
        yield app.state.services


def drive(folder: Path, body: Body, **more: Any) -> None:
    async def within_time() -> None:
        async with running(folder, **more) as app:
            await asyncio.wait_for(body(app), 60)
            assert app.scheduler.queued_tokens == 0
            for name in NAMES:
                await app.residency.drop(app.store.show(name).latest.digest)
            assert app.residency.bytes == 0
            assert not app.residency._leases

    asyncio.run(within_time())


def text(number: int) -> str:
    chance = random.Random(number)
    return " ".join(f"t{chance.randrange(tiny.VOCABULARY)}" for _ in range(chance.choice([1, 3, 7, 7, 15])))


def ask(model: str, number: int) -> Ask:
    output: Any = "embedding" if model == "base" else "logits"
    return Ask(model, Source(text(number)), Parameters(), output)


async def answers(app: Services, asks: list[Ask], **terms: Any) -> list[Answer]:
    return (await app.inference.answer(asks, Terms(**terms)))[0]


@pytest.fixture(scope="module")
def solo(house: Path) -> dict[tuple[str, int], Any]:
    """Each model's answer to each text, alone on a server with room for everything."""
    found: dict[tuple[str, int], Any] = {}

    async def body(app: Services) -> None:
        for model in MODELS:
            for number in range(6):
                (answer,) = await answers(app, [ask(model, number)])
                assert answer.error is None, answer.error
                found[model, number] = answer.value
        found["bytes", 0] = app.residency.bytes

    drive(house, body)
    return found


def holds(packages: int) -> int:
    """Device memory with room for packages of so many bytes beside the share of compiled setups."""
    return -(-packages * 8 // 7) + 8


def room(solo: dict[tuple[str, int], Any], part: float) -> int:
    """Device memory with room for a part of all packages."""
    return holds(int(solo["bytes", 0] * part))


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of packages that the engine had after each load."""
    seen: list[int] = []
    load = Engine.load

    def watched(self: Engine, digest: str, package: Any) -> int:
        nbytes = load(self, digest, package)
        seen.append(sum(resident.nbytes for resident in self._residents.values()))
        return nbytes

    monkeypatch.setattr(Engine, "load", watched)
    return seen


def same(answer: Answer, expected: Any) -> bool:
    return answer.error is None and float(np.abs(answer.value - expected).max()) <= TOLERANCE


@pytest.mark.parametrize("host_memory", [1 << 30, 20_000])
def test_a_working_set_of_four_times_the_room(house: Path, solo: dict[tuple[str, int], Any], peak: list[int], host_memory: int) -> None:
    """Single and mixed requests by the hundred, some of which hang up: nothing fails, nothing is mixed up, no budget is passed."""
    chance = random.Random(1)

    async def request(app: Services) -> None:
        models = chance.choices(MODELS, k=chance.choice([1, 1, 1, 2, 5, 27]))
        numbers = [chance.randrange(6) for _ in models]
        got = await answers(app, [ask(model, number) for model, number in zip(models, numbers, strict=True)])
        for model, number, answer in zip(models, numbers, got, strict=True):
            assert same(answer, solo[model, number]), (model, answer.error)

    async def body(app: Services) -> None:
        tasks = []
        for number in range(250):
            tasks.append(asyncio.ensure_future(request(app)))
            await asyncio.sleep(0.001 * (number % 3 == 0))
            if number % 10 == 9:
                chance.choice(tasks).cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
        assert [end for end in ends if end is None]
        evictions = app.metrics.registry.get_sample_value("turret_evictions_total", {"tier": "device"})
        assert evictions is not None
        assert evictions > len(NAMES)

    drive(house, body, device_memory=room(solo, 0.25), host_memory=host_memory, age_cap=0.02)
    assert 0 < max(peak) <= solo["bytes", 0] // 4 + 8


def test_a_request_that_does_not_fit_runs_in_groups(house: Path, solo: dict[tuple[str, int], Any], peak: list[int]) -> None:
    async def body(app: Services) -> None:
        got = await answers(app, [ask(model, number) for model in MODELS for number in range(3)])
        wanted = [solo[model, number] for model in MODELS for number in range(3)]
        assert all(same(answer, one) for answer, one in zip(got, wanted, strict=True))

    drive(house, body, device_memory=room(solo, 0.2))
    assert max(peak) <= solo["bytes", 0] // 5 + 8


def test_what_can_never_fit_fails_alone(house: Path, solo: dict[tuple[str, int], Any]) -> None:
    async def body(app: Services) -> None:
        everything = f"average({', '.join(NAMES[::6] + NAMES[2::6] + NAMES[1::6])})"
        large, small = await answers(app, [ask(everything, 0), ask("p00", 0)])
        assert large.error is not None
        assert (large.error.status, large.error.code) == (422, "too_big_for_device")
        assert same(small, solo["p00", 0])

    drive(house, body, device_memory=room(solo, 0.15))


def test_a_package_that_cannot_be_read_fails_its_rows_alone(
    house: Path, solo: dict[tuple[str, int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, broken = Engine.read, True

    async def body(app: Services) -> None:
        nonlocal broken
        digest = app.store.show("p04").latest.digest

        def failing(self: Engine, path: Path, manifest: Manifest) -> Any:
            if broken and digest.removeprefix("sha256:") in path.name:
                raise OSError("the disk is gone")
            return read(self, path, manifest)

        monkeypatch.setattr(Engine, "read", failing)
        for _ in range(2):
            got = await answers(app, [ask(model, 0) for model in ("p04", "p05", "stack(p04, p05)", "base")])
            assert [answer.error.status if answer.error else 200 for answer in got] == [500, 200, 500, 200]
            assert same(got[1], solo["p05", 0])
        broken = False
        (fine,) = await answers(app, [ask("p04", 1)])
        assert same(fine, solo["p04", 1])

    drive(house, body)


def test_a_cold_request_may_be_refused(house: Path, solo: dict[tuple[str, int], Any]) -> None:
    async def body(app: Services) -> None:
        assert same((await answers(app, [ask("p00", 0)]))[0], solo["p00", 0])
        cold, warm = await answers(app, [ask("p01", 0), ask("p00", 0)], cold="refuse")
        assert cold.error is not None
        assert (cold.error.status, cold.error.code) == (503, "model_cold")
        assert cold.error.retry_after is not None
        assert same(warm, solo["p00", 0])
        for _ in range(1000):
            (again,) = await answers(app, [ask("p01", 0)], cold="refuse")
            if again.error is None:
                break
            await asyncio.sleep(0.01)
        assert same(again, solo["p01", 0])

    drive(house, body)


def test_what_was_admitted_before_a_delete_is_answered(house: Path, solo: dict[tuple[str, int], Any]) -> None:
    """A request is admitted, its package is dropped before it was ever loaded, and it is answered; then nothing is left of it."""

    async def body(app: Services) -> None:
        digest = app.store.show("p07").latest.digest
        app.router.read(digest)  # the manifest is at hand, so that the request is admitted in its first step
        asking = asyncio.ensure_future(answers(app, [ask("p07", 2)]))
        await asyncio.sleep(0)
        assert app.residency.resident(digest) == {"device": False, "host": False, "pinned": False}
        await app.residency.drop(digest)
        assert same((await asking)[0], solo["p07", 2])
        assert app.residency.resident(digest) == {"device": False, "host": False, "pinned": False}

    drive(house, body)


def test_tokens_are_reserved_at_once_and_given_back(house: Path) -> None:
    """Those who wait for their packages count as those do who wait for the engine."""

    async def body(app: Services) -> None:
        inference: Inference = app.inference
        held = await app.residency.acquire([app.store.show("p00").latest.digest])
        waits = asyncio.ensure_future(inference.answer([ask("p01", number) for number in range(6)]))
        for _ in range(1000):
            if app.residency.occupied()["device"].waiting:
                break
            await asyncio.sleep(0.01)
        assert app.scheduler.queued_tokens == sum(len(text(number).split()) for number in range(6))
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert app.scheduler.queued_tokens == 0
        app.residency.release(held)
        await inference.answer([ask("p01", 0)], Terms(Caller("someone")))

    drive(house, body, device_memory=holds(16_000), age_cap=60.0)


def test_those_who_only_wait_are_told_after_a_time(house: Path, solo: dict[tuple[str, int], Any]) -> None:
    async def body(app: Services) -> None:
        held = await app.residency.acquire([app.store.show("p00").latest.digest])
        (late,) = await answers(app, [ask("p01", 0)])
        assert late.error is not None
        assert late.error.code == "model_cold"
        app.residency.release(held)
        assert same((await answers(app, [ask("p01", 0)]))[0], solo["p01", 0])

    drive(house, body, device_memory=holds(16_000), load_timeout=0.1)
