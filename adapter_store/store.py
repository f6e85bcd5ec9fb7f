"""The store: packages, their names and their bytes; the one way in. Knows blobs and the log, not HTTP and not the device.

    blobs/sha256/<hex>.safetensors    immutable package files (collection.py)
    log/, snapshots/                  create-only commits and what they add up to (log.py)

A publish writes the blob, then the commit; a delete writes the commit, and the blob waits for `collect`. So a process that dies at
any time leaves an operation whole or absent, and at worst a blob that nobody refers to. Any number of threads and processes may
write: a commit number is taken by creating its key, and whoever finds it taken reads it, plans again and tries the next.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from adapter_store.blobs import Blobs, open_blobs, probe
from adapter_store.cache import DiskCache
from adapter_store.catalog import Catalog, Entry, VersionRecord
from adapter_store.changes import MAX_BY, Change, Collect, Commit
from adapter_store.collection import BATCH, FOLDER, blob_key, collectable
from adapter_store.errors import Damaged, NotFound, StoreError
from adapter_store.files import OwnFiles, Verified
from adapter_store.limits import Limits
from adapter_store.log import History, Log
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.names import Reference, check_alias, check_name
from adapter_store.package import MAX_SIZE, Package, check_backbone, open_package, read_manifest
from adapter_store.publication import Publication, Published, Uploads, summarise
from adapter_store.wishes import AliasWish, Changed, DeleteWish, RollbackWish, UnaliasWish, Wish, freed, plan

__all__ = ["Changed", "Published", "Store", "summarise"]

_ATTEMPTS = 1000
# Seconds after which a file that is being staged, or a probe, is taken for one whose process died, however short the grace period is.
_STALLED = 60.0
# Seconds that a writer who lost a race waits at most before the next attempt.
_PATIENCE = 0.05


class Store:
    """Publish, resolve, list, alias, delete. Safe to use from several threads; queries take no lock."""

    def __init__(
        self,
        blobs: Blobs,
        max_size: int = MAX_SIZE,
        cache: Path | None = None,
        cache_bytes: int = 10 << 30,
        grace: float = 300.0,
        snapshot_every: int = 256,
        limits: Limits | None = None,
    ) -> None:
        self.blobs = blobs
        self.max_size = max_size
        self.limits = limits
        self._grace = grace
        self._lock = threading.Lock()
        self._log = Log(blobs, snapshot_every)
        self._verified = Verified()
        self._damaged: set[str] = set()
        self._files = OwnFiles(self._locate, self._verified) if blobs.root else DiskCache(cache, cache_bytes, self._fetch)
        self._catalog = self._log.newest_snapshot()
        self.refresh()
        self._log.snapshot(self._catalog)

    @classmethod
    def open(
        cls,
        url: str,
        max_size: int = MAX_SIZE,
        cache: Path | None = None,
        cache_bytes: int = 10 << 30,
        grace: float = 300.0,
        snapshot_every: int = 256,
        limits: Limits | None = None,
    ) -> "Store":
        """Opens (or makes) the store at a URL (blobs.py) and reads its newest snapshot and its log; raises StoreError.

        cache, cache_bytes: folder and budget of the disk cache that stores need which are not folders themselves; a temporary
        folder by default. grace: seconds that a blob without references stays. snapshot_every: commits from one snapshot to the next.
        limits: what a package may have.
        """
        probe(open_blobs(url, impatient=True))
        return cls(open_blobs(url), max_size, cache, cache_bytes, grace, snapshot_every, limits)

    def close(self) -> None:
        """Gives the disk cache's folder free for another process. The store is not to be used after."""
        self._files.close()

    # Queries

    @property
    def catalog(self) -> Catalog:
        """The catalogue as last read; it never changes under its reader."""
        return self._catalog

    def refresh(self) -> bool:
        """Reads commits that others have made since; True if there were any."""
        with self._lock:
            before = self._catalog.n
            self._catalog = self._log.follow(self._catalog)
            return self._catalog.n > before

    def resolve(self, reference: Reference, spot: float | None = None) -> VersionRecord:
        """The version that a reference means now; raises NotFound. `spot`, in [0, 1), decides where an alias is weighted."""
        return self._catalog.resolve(reference, spot)

    def names(self) -> list[str]:
        """All names, sorted."""
        return [entry.name for entry in self._catalog.entries()]

    def entries(self) -> list[Entry]:
        """All names with their versions and aliases, sorted by name."""
        return self._catalog.entries()

    def show(self, name: str) -> Entry:
        """One name with its versions and aliases; raises NotFound."""
        return self._catalog.entry(name)

    def history(self, name: str | None = None, before: int | None = None, limit: int = 100) -> History:
        """At most `limit` commits before commit `before` (the newest by default), newest first, that concern `name` (all for None).

        One call reads a bounded part of the log: a page may be short, or empty, and still have a `next_before`.
        """
        newest = self._catalog.n if before is None else min(before - 1, self._catalog.n)
        return self._log.history(newest, name, limit)

    # Changes

    def publish(
        self,
        path: Path,
        name: str,
        backbone: Backbone | None = None,
        alias: str | None = None,
        only_new: bool = False,
        check: Callable[[Package], None] = lambda package: None,
        by: str = "",
        signature: str | None = None,
    ) -> Published:
        """Checks a package file whole and publishes it as the next version of `name`, moving `alias` in the same commit.

        `check` may refuse a sound package for reasons of its own, before anything is written. `signature` is kept as it is given.
        The same bytes under the same name give the existing version, as it is. Raises InvalidName, InvalidPackage, WrongBackbone,
        AlreadyExists (`only_new` and the name exists) and NotFound (its composition names what is not in the store).
        """
        package = self.examine(path, name, backbone, alias, check)
        return self.publish_all([(name, package, path)], alias, only_new, by, signature)[0]

    def examine(
        self,
        path: Path,
        name: str,
        backbone: Backbone | None = None,
        alias: str | None = None,
        check: Callable[[Package], None] = lambda package: None,
    ) -> Package:
        """Checks a package file as `publish` does, and publishes nothing."""
        check_name(name)
        if alias is not None:
            check_alias(alias)
        package = open_package(path, self.max_size, self.limits)
        if backbone is not None:
            check_backbone(package.manifest, backbone)
        check(package)
        return package

    def publish_all(
        self,
        packages: Sequence[tuple[str, Package, Path]],
        alias: str | None = None,
        only_new: bool = False,
        by: str = "",
        signature: str | None = None,
    ) -> list[Published]:
        """Publishes opened packages under their names in one commit: all of them or none. `alias`, `only_new` and `signature` concern
        the last. A package may be composed of those before it.
        """
        publication = Publication(packages, alias, only_new, signature)
        self.refresh()
        self._catalog.tried(publication.changes(self._catalog))  # what is refused is refused before anything is sent
        uploads = Uploads(self.blobs, self._verified, self._damaged, publication.files)
        try:
            uploads.send(self._catalog)
            catalog = self._commit(publication.changes, by, uploads).catalog
        except StoreError:
            with suppress(StoreError):
                self._end(uploads.sent)
            raise
        return publication.published(catalog)

    def change(self, wishes: Sequence[Wish], by: str = "") -> Changed:
        """Fulfils several wishes, in their order, in one commit: all of them or none. Raises InvalidName, NotFound, Conflict."""
        return self._commit(lambda catalog: plan(wishes, catalog), by)

    def set_alias(self, name: str, alias: str, target: int | Mapping[int, int], by: str = "") -> Entry:
        """Makes or moves an alias to a version, or to several by weight; raises InvalidName and NotFound."""
        return self.change([AliasWish(name, alias, target)], by).catalog.entry(name)

    def drop_alias(self, name: str, alias: str, by: str = "") -> Entry:
        """Removes an alias; raises NotFound."""
        return self.change([UnaliasWish(name, alias)], by).catalog.entry(name)

    def rollback(self, name: str, alias: str, by: str = "") -> Entry:
        """Moves an alias back to where it pointed before; a second time undoes the first. Raises NotFound and Conflict."""
        return self.change([RollbackWish(name, alias)], by).catalog.entry(name)

    def delete(self, name: str, version: int | None = None, by: str = "") -> tuple[str, ...]:
        """Removes a version, or the name with all of them. Returns the digests that nothing refers to any more; their blobs wait for
        `collect`. Raises NotFound, and Conflict while an alias or another package refers to what would go."""
        return self.change([DeleteWish(name, version)], by).freed

    def collect(self, grace: float | None = None) -> tuple[str, ...]:
        """Removes the blobs that nothing has referred to for `grace` seconds (the store's own grace by default), and what writers that
        died left behind. Returns the digests whose blobs went. Any number of processes may do this at the same time."""
        grace = self._grace if grace is None else grace
        before, stalled = time.time() - grace, time.time() - max(grace, _STALLED)
        self.refresh()
        found = collectable(self._catalog, self.blobs.list(FOLDER), before)
        digests = [digest for digest in found.digests if not self._files.uses_blob(digest)]
        collected = [digest for i in range(0, len(digests), BATCH) for digest in self._end(digests[i : i + BATCH])]
        for key in found.ended:
            self.blobs.delete(key)
        for item in self.blobs.list("probe"):
            if item.modified < stalled:
                self.blobs.delete(item.key)
        self.blobs.sweep(stalled)
        return tuple(collected)

    # Bytes

    @contextmanager
    def local(self, digest: str) -> Iterator[Path]:
        """A local file with the bytes of a package, to be read only, for as long as it is held: they are those that were published.

        Raises NotFound, Damaged (publishing the package again mends it), and StoreError where they cannot be had now.
        """
        try:
            with self._files.hold(digest) as path:
                yield path
        except Damaged:
            self._damaged.add(digest)
            raise

    def path(self, digest: str) -> Path:
        """`local` without holding: the file may be gone once the blob is collected or the disk cache needs its room."""
        with self.local(digest) as path:
            return path

    def read(self, digest: str) -> bytes:
        """The bytes of a package; raises like `local`."""
        with self.local(digest) as path:
            return path.read_bytes()

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a package; raises like `local`."""
        with self.local(digest) as path:
            return read_manifest(path)

    def forget(self, digest: str) -> None:
        """Drops a package from the disk cache: now, or once nobody holds it."""
        self._files.forget(digest)

    def _locate(self, digest: str) -> Path:
        path = self.blobs.local_path(self._key(digest))
        assert path is not None  # in a folder store every key has one
        return path

    def _fetch(self, digest: str) -> Iterator[bytes]:
        return self.blobs.chunks(self._key(digest))

    def _key(self, digest: str) -> str:
        """The key of a package's bytes. Reads the log again where they are not in the generation that was last seen."""
        for seen_long_ago in (True, False):
            if not seen_long_ago:
                self.refresh()
            key = blob_key(digest, self._catalog.blob(digest).generation)
            if self.blobs.size(key) is not None:
                return key
        raise NotFound(f"The store at {self.blobs.url} holds no package {digest}.")

    # Commits

    def _commit(self, changes: Callable[[Catalog], list[Change]], by: str, uploads: Uploads | None = None) -> Changed:
        """Commits what `changes` makes of the newest state, planning again whenever another writer was first."""
        for attempt in range(_ATTEMPTS):
            with self._lock:
                before = self._catalog = self._log.follow(self._catalog)
                planned = changes(before)
                if not planned:
                    return Changed(before)
                if uploads is None or not uploads.lacking(before):
                    commit = Commit(n=before.n + 1, time=_now(), by=by[:MAX_BY], id=uuid.uuid4().hex, changes=tuple(planned))
                    after = before.after(commit)
                    if self._log.append(commit):
                        self._catalog = after
                        break
            if uploads is not None:
                uploads.send(before)
            time.sleep(random.uniform(0, min(_PATIENCE, 0.001 * attempt)))
        else:
            raise StoreError(f"The store at {self.blobs.url} is too busy: {_ATTEMPTS} other commits came first; try again.")
        self._log.snapshot(after)
        return Changed(after, commit, freed(before, after, commit))

    def _end(self, digests: Iterable[str]) -> list[str]:
        """Ends the generation of those digests that nothing refers to, then deletes its keys; nobody writes these any more."""
        seen = {digest: self._catalog.blob(digest).generation for digest in digests}
        ending: list[str] = []

        def changes(catalog: Catalog) -> list[Change]:
            blobs = {digest: catalog.blob(digest) for digest in seen}
            ending[:] = [digest for digest, blob in blobs.items() if not blob.references and blob.generation == seen[digest]]
            return [Collect(digests=tuple(ending))] if ending else []

        self._commit(changes, "")
        for digest in ending:
            self.blobs.delete(blob_key(digest, seen[digest]))
        return ending


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
