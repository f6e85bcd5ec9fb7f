"""One publish: the changes that packages take under their names, and the blobs that must be there first. Knows no log and no lock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_store.blobs import Blobs
from adapter_store.catalog import Catalog, VersionRecord
from adapter_store.changes import Change, Publish, Summary
from adapter_store.collection import blob_key
from adapter_store.composition import parse, references
from adapter_store.errors import AlreadyExists
from adapter_store.files import Verified
from adapter_store.names import Reference
from adapter_store.package import Package
from adapter_store.wishes import alias_changes


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish did. `created` is False where the name already held the same bytes; `record` is then that version."""

    record: VersionRecord
    created: bool
    package: Package


class Publication:
    """Opened packages under their names, to be published together; `alias`, `only_new` and `signature` concern the last of them."""

    def __init__(self, packages: Sequence[tuple[str, Package, Path]], alias: str | None, only_new: bool, signature: str | None) -> None:
        self._packages = packages
        self._alias = alias
        self._only_new = only_new
        self._signature = signature
        self._summaries = {name: summarise(package) for name, package, _ in packages}
        self._created: dict[str, bool] = {}

    @property
    def files(self) -> dict[str, tuple[Package, Path]]:
        """The packages and their files by digest."""
        return {package.digest: (package, path) for _, package, path in self._packages}

    def changes(self, catalog: Catalog) -> list[Change]:
        """What is to be committed in this state; raises AlreadyExists."""
        changes: list[Change] = []
        for name, package, _ in self._packages:
            entry, last = catalog.find(name), name == self._packages[-1][0]
            if self._only_new and last and entry is not None:
                raise AlreadyExists(
                    f"The name '{name}' already exists, and only a new name was asked for: choose another, or add a version to it."
                )
            existing = None if entry is None else entry.holding(package.digest)
            self._created[name] = existing is None
            version = catalog.next_version(name) if existing is None else existing.version
            if existing is None:
                signature = self._signature if last else None
                summary = self._summaries[name]
                changes.append(Publish(name=name, version=version, digest=package.digest, summary=summary, signature=signature))
            if last and self._alias is not None:
                changes += alias_changes(catalog, name, self._alias, version)
        return changes

    def published(self, catalog: Catalog) -> list[Published]:
        """What came of it, in the state after the commit."""
        return [
            Published(catalog.resolve(Reference(name, package.digest)), self._created[name], package) for name, package, _ in self._packages
        ]


class Uploads:
    """The blobs of one publish: which generation of each is known to be in the store, and which were sent there.

    `damaged` are digests whose bytes in the store were found damaged; they are sent again.
    """

    def __init__(self, blobs: Blobs, verified: Verified, damaged: set[str], files: Mapping[str, tuple[Package, Path]]) -> None:
        self._blobs = blobs
        self._verified = verified
        self._damaged = damaged
        self._files = files
        self._there: dict[str, int] = {}
        self.sent: set[str] = set()

    def lacking(self, catalog: Catalog) -> list[str]:
        """Digests of which a catalogue names a generation that is not known to be there."""
        return [digest for digest in self._files if self._there.get(digest) != catalog.blob(digest).generation]

    def send(self, catalog: Catalog) -> None:
        """Sends those that the store has not. A generation that is there stays until a commit ends it, referred to or not."""
        for digest in self.lacking(catalog):
            package, path = self._files[digest]
            generation = catalog.blob(digest).generation
            key = blob_key(digest, generation)
            if not self._has(key, package):
                self.sent.add(digest)
                self._blobs.put_file(key, path)
                self._damaged.discard(digest)
            self._there[digest] = generation

    def _has(self, key: str, package: Package) -> bool:
        """Whether the key holds a package's bytes, as far as can be told without downloading them."""
        if package.digest in self._damaged or self._blobs.size(key) != package.size:
            return False
        path = self._blobs.local_path(key)
        try:
            return path is None or self._verified.holds(path, package.digest)
        except OSError:
            return False


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
