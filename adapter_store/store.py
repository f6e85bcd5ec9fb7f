"""The store: packages, their names and their bytes; the one way in. Knows files and the log, not HTTP and not the device.

    blobs/sha256/<hex>.safetensors    immutable package files
    log/<12 digits>.json              create-only commits (catalog.py)

A publish writes the blob, then the commit; a delete writes the commit, then removes blobs. So a process that dies at any
time leaves an operation whole or absent, and at worst a blob that nobody refers to. Any number of threads and processes may
write: a commit number is taken by creating its key, and whoever finds it taken reads it and tries the next.
"""

import os
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from adapter_store.blobs import Blobs, open_blobs
from adapter_store.catalog import Catalog, Change, Commit, Delete, Entry, Publish, SetAlias, Summary, VersionRecord
from adapter_store.composition import parse, references
from adapter_store.errors import AlreadyExists, NotFound, StoreError
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.names import DIGEST, Reference, check_alias, check_name, shown
from adapter_store.package import MAX_SIZE, Package, check_backbone, open_package, read_manifest

_ATTEMPTS = 1000
_LOOKS = 100


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish did. `created` is False where the name already held the same bytes; `record` is then that version."""

    record: VersionRecord
    created: bool
    package: Package


class Store:
    """Publish, resolve, list, alias, delete. Safe to use from several threads; queries take no lock."""

    def __init__(self, blobs: Blobs, max_size: int = MAX_SIZE) -> None:
        self.blobs = blobs
        self.max_size = max_size
        self._lock = threading.RLock()
        self._catalog = Catalog()
        self._cache: Path | None = None

    @classmethod
    def open(cls, url: str, max_size: int = MAX_SIZE) -> "Store":
        """Opens (or makes) the store at a path, file:// or memory:// URL and reads its log; raises StoreError."""
        store = cls(open_blobs(url), max_size)
        _probe(store.blobs)
        store.refresh()
        return store

    # Queries

    @property
    def catalog(self) -> Catalog:
        """The catalogue as last read; it never changes under its reader."""
        return self._catalog

    def refresh(self) -> bool:
        """Reads commits that others have made since; True if there were any."""
        with self._lock:
            before = self._catalog.n
            while (commit := self._commit_at(self._catalog.n + 1)) is not None:
                try:
                    self._catalog = self._catalog.after(commit)
                except StoreError as error:
                    raise StoreError(f"The log of the store at {self.blobs.url} is damaged at commit {commit.n}: {error}") from error
            return self._catalog.n > before

    def resolve(self, reference: Reference) -> VersionRecord:
        """The version that a reference means now; raises NotFound."""
        return self._catalog.resolve(reference)

    def names(self) -> list[str]:
        """All names, sorted."""
        return [entry.name for entry in self._catalog.entries()]

    def entries(self) -> list[Entry]:
        """All names with their versions and aliases, sorted by name."""
        return self._catalog.entries()

    def show(self, name: str) -> Entry:
        """One name with its versions and aliases; raises NotFound."""
        return self._catalog.entry(name)

    # Changes

    def publish(
        self,
        path: Path,
        name: str,
        backbone: Backbone | None = None,
        alias: str | None = None,
        only_new: bool = False,
        check: Callable[[Package], None] = lambda package: None,
    ) -> Published:
        """Checks a package file whole and publishes it as the next version of `name`, moving `alias` in the same commit.

        `check` may refuse a sound package for reasons of its own, before anything is written.
        The same bytes under the same name give the existing version. Raises InvalidName, InvalidPackage, WrongBackbone,
        AlreadyExists (`only_new` and the name exists) and NotFound (its composition names what is not in the store).
        """
        return self.publish_all([(name, self.examine(path, name, backbone, alias, check), path)], alias, only_new)[0]

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
        package = open_package(path, self.max_size)
        if backbone is not None:
            check_backbone(package.manifest, backbone)
        check(package)
        return package

    def publish_all(
        self, packages: Sequence[tuple[str, Package, Path]], alias: str | None = None, only_new: bool = False
    ) -> list[Published]:
        """Publishes opened packages under their names in one commit: all of them or none. `alias` and `only_new` concern the last one.

        A package may be composed of those before it.
        """
        created: dict[str, bool] = {}
        summaries = {name: summarise(package) for name, package, _ in packages}
        last = packages[-1][0]

        def plan(catalog: Catalog) -> list[Change]:
            changes: list[Change] = []
            for name, package, _ in packages:
                entry = _entry(catalog, name)
                if only_new and name == last and entry is not None:
                    raise AlreadyExists(
                        f"The name '{name}' already exists, and only a new name was asked for: choose another, or add a version to it."
                    )
                existing = None if entry is None else entry.holding(package.digest)
                created[name] = existing is None
                version = catalog.next_version(name) if existing is None else existing.version
                if existing is None:
                    changes.append(Publish(name=name, version=version, digest=package.digest, summary=summaries[name]))
                if name == last and alias is not None and (entry is None or entry.aliases.get(alias) != version):
                    changes.append(SetAlias(name=name, alias=alias, version=version))
            return changes

        self.refresh()
        plan(self._catalog)
        try:
            for _, package, path in packages:
                self._ensure_blob(package, path)
            catalog = self._commit(plan)
        except StoreError:
            self.collect([package.digest for _, package, _ in packages])
            raise
        # Someone may have deleted the last other reference between the two lines above, and the blob with it.
        for _, package, path in packages:
            self._ensure_blob(package, path)
        return [Published(catalog.resolve(Reference(name, package.digest)), created[name], package) for name, package, _ in packages]

    def set_alias(self, name: str, alias: str, version: int) -> VersionRecord:
        """Makes or moves an alias; raises InvalidName and NotFound."""
        check_alias(alias)

        def plan(catalog: Catalog) -> list[Change]:
            moved = catalog.entry(name).aliases.get(alias) != version
            return [SetAlias(name=name, alias=alias, version=version)] if moved else []

        return self._commit(plan).resolve(Reference(name, alias))

    def delete(self, name: str, version: int | None = None, collect: bool = True) -> tuple[str, ...]:
        """Removes a version, or the name with all of them, and the blobs that nothing refers to any more.

        Returns those blobs' digests. With `collect=False` they stay until `collect(digests)` is called, so that a server can
        drain first. Raises NotFound, and Conflict while an alias or another package refers to what would go.
        """
        removed: list[str] = []

        def plan(catalog: Catalog) -> list[Change]:
            versions = catalog.entry(name).versions
            removed[:] = [record.digest for number, record in versions.items() if version in (None, number)]
            return [Delete(name=name, version=version)]

        catalog = self._commit(plan)
        freed = tuple(digest for digest in removed if not catalog.holds(digest))
        if collect:
            self.collect(freed)
        return freed

    def collect(self, digests: Iterable[str]) -> None:
        """Removes the blobs among `digests` that nothing refers to.

        A blob is set aside, the log read again, and only then is it removed, or put back if it was published meanwhile.
        """
        with self._lock:
            self.refresh()
            for digest in digests:
                aside = f"aside/{uuid.uuid4().hex}"
                if self._catalog.holds(digest) or not self.blobs.move(_blob_key(digest), aside):
                    continue
                self.refresh()
                if self._catalog.holds(digest):
                    self.blobs.move(aside, _blob_key(digest))
                    continue
                self.blobs.delete(aside)
                if self._cache is not None:
                    (self._cache / _file_name(digest)).unlink(missing_ok=True)

    # Bytes

    def read(self, digest: str) -> bytes:
        """The bytes of a package; raises NotFound."""
        return self.blobs.get(self._present(digest))

    def path(self, digest: str) -> Path:
        """A local file with the bytes of a package, to be read only; raises NotFound."""
        return self.blobs.local_path(self._present(digest)) or self._cached(digest)

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a package, from its header alone; raises NotFound."""
        return read_manifest(self.path(digest))

    def _cached(self, digest: str) -> Path:
        with self._lock:
            if self._cache is None:
                self._cache = Path(tempfile.mkdtemp(prefix="turret-cache-"))
                weakref.finalize(self, shutil.rmtree, self._cache, ignore_errors=True)
            path = self._cache / _file_name(digest)
            if not path.exists():
                part = path.with_suffix(".part")
                part.write_bytes(self.read(digest))
                os.replace(part, path)
            return path

    def _present(self, digest: str) -> str:
        """The key of a package's bytes. Waits a moment for one that the catalogue holds: `collect` may have set it aside."""
        key = _blob_key(digest)
        for _ in range(_LOOKS):
            if self.blobs.size(key) is not None:
                return key
            if not self._catalog.holds(digest):
                break
            time.sleep(0.01)
        raise NotFound(f"The store at {self.blobs.url} holds no package {digest}.")

    def _ensure_blob(self, package: Package, path: Path) -> None:
        key = _blob_key(package.digest)
        if self.blobs.size(key) != package.size:
            self.blobs.put_file(key, path)

    # The log

    def _commit(self, plan: Callable[[Catalog], list[Change]]) -> Catalog:
        """Commits what `plan` makes of the newest state, planning again whenever another writer was first."""
        with self._lock:
            for _ in range(_ATTEMPTS):
                self.refresh()
                changes = plan(self._catalog)
                if not changes:
                    return self._catalog
                commit = Commit(n=self._catalog.n + 1, time=_now(), changes=tuple(changes))
                catalog = self._catalog.after(commit)
                if self.blobs.put_if_absent(_log_key(commit.n), commit.model_dump_json(exclude_none=True).encode()):
                    self._catalog = catalog
                    return catalog
            raise StoreError(f"The store at {self.blobs.url} is too busy: {_ATTEMPTS} other commits came first; try again.")

    def _commit_at(self, n: int) -> Commit | None:
        try:
            data = self.blobs.get(_log_key(n))
        except NotFound:
            return None
        try:
            return Commit.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(
                f"The store at {self.blobs.url} has a commit {n} that this version cannot read (damaged, or written by a newer version)."
            ) from error


def summarise(package: Package) -> Summary:
    """What a listing shows of a package."""
    manifest = package.manifest
    composition = None if manifest.composition is None else parse(manifest.composition)
    pins = () if composition is None else tuple(references(composition.root))
    return Summary(
        size=package.size,
        parameters=package.parameters,
        task=manifest.task,
        head=None if manifest.head is None else manifest.head.type,
        labels=0 if manifest.head is None else len(manifest.head.labels),
        methods=tuple(sorted({method.method for method in manifest.methods.values()})),
        model_type=manifest.backbone.model_type,
        license=manifest.license,
        members=tuple(dict.fromkeys(str(pin) for pin in pins if pin.name != "self")),
    )


def _probe(blobs: Blobs) -> None:
    """Refuses a store in which creating a key twice succeeds twice: commits would be lost there."""
    key = f"probe/{uuid.uuid4().hex}"
    try:
        first, second = blobs.put_if_absent(key, b"1"), blobs.put_if_absent(key, b"2")
    finally:
        blobs.delete(key)
    if not first or second:
        raise StoreError(
            f"The store at {blobs.url} does not create a key only if it is absent, so commits could be lost: use another store."
        )


def _entry(catalog: Catalog, name: str) -> Entry | None:
    try:
        return catalog.entry(name)
    except NotFound:
        return None


def _blob_key(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise NotFound(f"{shown(digest)} is not a digest ('sha256:' and 64 hex digits).")
    return f"blobs/sha256/{_file_name(digest)}"


def _file_name(digest: str) -> str:
    return f"{digest.removeprefix('sha256:')}.safetensors"


def _log_key(n: int) -> str:
    return f"log/{n:012d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
