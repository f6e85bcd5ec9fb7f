"""Who may import whom, read from the files themselves: imports inside functions count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT = "clients/python/src/turret_client"

# Import -> the only files and folders of server/, adapter_store/ and the client that may have it.
ONLY: dict[str, tuple[str, ...]] = {
    "torch": ("server/engine", "server/methods", "adapter_store/importers/pickles.py"),
    "safetensors": ("server/engine", "server/methods", "adapter_store/importers/pickles.py"),
    "transformers": ("server/engine", "server/methods", "server/__main__.py"),
    "tokenizers": ("server/engine", "server/tasks"),
    "fastapi": ("server/app.py", "server/api"),
    "starlette": ("server/app.py", "server/api"),
    "uvicorn": ("server/__main__.py", "server/protocol.py"),
    "prometheus_client": ("server/metrics.py", "server/api/operations.py"),
    "obstore": ("adapter_store/blobs.py",),
    "pickle": (),
    "server": ("server",),
    "server.api": ("server/app.py", "server/api"),
    "server.engine": ("server/app.py", "server/engine", "server/__main__.py"),
    "server.methods": ("server/engine", "server/methods"),
    "server.app": ("server/__main__.py",),
    "adapter_store": ("server", "adapter_store", f"{CLIENT}/offline.py"),
    "turret_client": (CLIENT,),
}


def sources() -> list[str]:
    paths = [path for folder in ("server", "adapter_store", CLIENT) for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def imports(source: str) -> Iterator[str]:
    """Dotted names that a file imports; `from a.b import c` gives a.b and a.b.c."""
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def allowed(source: str, places: tuple[str, ...]) -> bool:
    return any(source == place or source.startswith(f"{place}/") for place in places)


@pytest.mark.parametrize("package", ONLY)
def test_a_border(package: str) -> None:
    crossing = [source for source in sources() if not allowed(source, ONLY[package]) and any(within(n, package) for n in imports(source))]
    assert crossing == []


@pytest.mark.parametrize("place", sorted({place for places in ONLY.values() for place in places}))
def test_the_places_of_the_table_exist(place: str) -> None:
    assert (ROOT / place).exists()


def test_what_keeps_time_knows_neither_numbers_nor_the_store() -> None:
    """Scheduler and residency are bookkeeping: beside the standard library they know the nouns and their parts."""
    knows: dict[str, set[str]] = {
        "server/scheduler.py": {"server.core", "server.waiting"},
        "server/waiting.py": {"server.core", "server.costs"},
        "server/costs.py": {"numpy", "numpy.typing"},
        "server/threads.py": set(),
        "server/residency.py": {"server.tiers", "server.room", "server.leases"},
        "server/tiers.py": {"server.room"},
        "server/room.py": set(),
        "server/leases.py": set(),
    }
    for source, known in knows.items():
        foreign = {name for name in imports(source) if name.partition(".")[0] in ("server", "adapter_store", "numpy", "torch", "fastapi")}
        assert {".".join(name.split(".")[:2]) for name in foreign} == known


def test_the_tables_see_something() -> None:
    assert len(sources()) > 50
    assert any(within(name, "torch") for name in imports("adapter_store/importers/pickles.py")), "imports inside functions are seen"
