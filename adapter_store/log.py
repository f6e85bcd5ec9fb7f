"""The log of commits and its snapshots, as keys in the blobs. Knows how they are written, read and repaired; no packages.

    log/<12 digits>.json          commits, each created once and never changed
    snapshots/<12 digits>.json    {"sha256": of the state's bytes, "state": the catalogue after that commit}; the newest two are kept

The log alone is the truth: a snapshot only saves reading. One that is damaged is passed over for the older one, or for the log.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from adapter_store.blobs import Blobs
from adapter_store.catalog import Blob, Catalog, Entry
from adapter_store.changes import Commit
from adapter_store.errors import NotFound, StoreError

READERS = 16
# Commits that one page of history reads at most, so that a rare name does not read the whole log in one request.
HISTORY_READS = 1024
_KEPT = 2
_FORMAT = "turret-snapshot/1"


@dataclass(frozen=True, slots=True)
class History:
    """A page of commits, newest first. `next_before` asks for the page before it; None at the beginning of the log."""

    commits: tuple[Commit, ...]
    next_before: int | None


@dataclass(frozen=True, slots=True)
class _State:
    format: str
    n: int
    entries: tuple[Entry, ...]
    blobs: dict[str, Blob]


_STATE, _ENTRY, _BLOBS = TypeAdapter(_State), TypeAdapter(Entry), TypeAdapter(dict[str, Blob])


class Log:
    """Commits and snapshots in one store. Keeps nothing but where the newest snapshot is."""

    def __init__(self, blobs: Blobs, snapshot_every: int) -> None:
        self._blobs = blobs
        self._every = snapshot_every
        self._snapshot = 0

    # Commits

    def commit(self, n: int) -> Commit | None:
        """Commit `n`, None if it is not made yet; raises StoreError where it cannot be read."""
        try:
            data = self._blobs.get(_log_key(n))
        except NotFound:
            return None
        try:
            commit = Commit.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(
                f"The store at {self._blobs.url} has a commit {n} that this version cannot read (damaged, or written by a newer version)."
            ) from error
        if commit.n != n:
            raise StoreError(f"The store at {self._blobs.url} has commit {commit.n} where commit {n} belongs: its log is damaged.")
        return commit

    def append(self, commit: Commit) -> bool:
        """Creates a commit; False if another writer was first. Where the answer was lost, the commit that is there tells by its `id`."""
        try:
            created = self._blobs.put_if_absent(_log_key(commit.n), commit.model_dump_json(exclude_none=True).encode())
        except StoreError:
            with suppress(StoreError):
                if self.commit(commit.n) == commit:
                    return True
            raise
        return created or self.commit(commit.n) == commit

    def follow(self, catalog: Catalog) -> Catalog:
        """The catalogue with the commits since; raises StoreError where one is damaged, and then nothing of it has happened."""
        window = 1
        while True:
            commits = self._run(range(catalog.n + 1, catalog.n + 1 + window))
            try:
                catalog = catalog.after(*commits)
            except StoreError as error:
                raise StoreError(
                    f"The log of the store at {self._blobs.url} is damaged at {_first_bad(catalog, commits)}: {error}"
                ) from error
            if len(commits) < window:
                return catalog
            window = min(2 * window, READERS)

    def history(self, newest: int, name: str | None, limit: int) -> History:
        """At most `limit` commits from commit `newest` back that concern `name` (all for None). One call reads a bounded number."""
        found: list[Commit] = []
        n = newest
        lowest = max(0, newest - max(HISTORY_READS, limit))
        while n > lowest and len(found) < limit:
            numbers = range(n, max(lowest, n - READERS), -1)
            for commit in self._read(numbers):
                if commit is None:
                    raise StoreError(f"The log of the store at {self._blobs.url} is damaged: commit {n} is missing.")
                n = commit.n - 1
                if name is None or commit.concerns(name):
                    found.append(commit)
                    if len(found) == limit:
                        break
        return History(tuple(found), n + 1 if n > 0 else None)

    def _run(self, numbers: Sequence[int]) -> list[Commit]:
        """The commits from the first number on, up to the first that is not made yet."""
        commits: list[Commit] = []
        for commit in self._read(numbers):
            if commit is None:
                break
            commits.append(commit)
        return commits

    def _read(self, numbers: Sequence[int]) -> Iterator[Commit | None]:
        """Several commits, read at the same time where that saves waiting for an object store."""
        if len(numbers) == 1 or self._blobs.root is not None:
            yield from map(self.commit, numbers)
        else:
            with ThreadPoolExecutor(READERS) as readers:
                yield from readers.map(self.commit, numbers)

    # Snapshots

    def newest_snapshot(self) -> Catalog:
        """The state of the newest snapshot that is whole; the empty catalogue if there is none."""
        for n in sorted(self._snapshots(), reverse=True):
            catalog = self._read_snapshot(n)
            if catalog is not None:
                self._snapshot = n
                return catalog
        return Catalog()

    def snapshot(self, catalog: Catalog) -> None:
        """Writes a snapshot where one is due and removes those older than the newest two. A failure costs nothing but reading."""
        due = catalog.n // self._every * self._every
        if due <= self._snapshot:
            return
        self._snapshot = catalog.n
        with suppress(StoreError):
            present = self._snapshots()
            if not any(n >= due for n in present):  # another writer may have been first
                self._blobs.put_if_absent(_snapshot_key(catalog.n), _dump(catalog))
                present.append(catalog.n)
            for n in sorted(present)[:-_KEPT]:
                self._blobs.delete(_snapshot_key(n))

    def _snapshots(self) -> list[int]:
        names = (item.key.rpartition("/")[2].removesuffix(".json") for item in self._blobs.list("snapshots"))
        return [int(name) for name in names if name.isdecimal()]

    def _read_snapshot(self, n: int) -> Catalog | None:
        try:
            data = self._blobs.get(_snapshot_key(n))
        except NotFound:  # a writer removed it since
            return None
        return _load(data, n)


def _dump(catalog: Catalog) -> bytes:
    entries, blobs = catalog.contents()
    # Name by name: one call for all of them would keep every other thread of the process waiting for a tenth of a second and more.
    names = b",".join([_ENTRY.dump_json(entry) for entry in entries])
    state = b'{"format":"%s","n":%d,"entries":[%s],"blobs":%s}' % (_FORMAT.encode(), catalog.n, names, _BLOBS.dump_json(blobs))
    return _prefix(state) + state + b"}"


def _load(data: bytes, n: int) -> Catalog | None:
    """The catalogue of a snapshot's bytes, None where they are not what was written."""
    head, state_bytes = data[:_PREFIX_LENGTH], data[_PREFIX_LENGTH:-1]
    if head != _prefix(state_bytes):
        return None
    try:
        state = _STATE.validate_json(state_bytes)
    except ValidationError:
        return None
    return Catalog.of(n, state.entries, state.blobs) if (state.format, state.n) == (_FORMAT, n) else None


def _prefix(state: bytes) -> bytes:
    return b'{"sha256":"%s","state":' % hashlib.sha256(state).hexdigest().encode()


_PREFIX_LENGTH = len(_prefix(b""))


def _first_bad(catalog: Catalog, commits: Sequence[Commit]) -> str:
    for commit in commits:
        try:
            catalog = catalog.after(commit)
        except StoreError:
            return f"commit {commit.n}"
    return "its end"


def _log_key(n: int) -> str:
    return f"log/{n:012d}.json"


def _snapshot_key(n: int) -> str:
    return f"snapshots/{n:012d}.json"
