"""Names, versions and aliases as a pure state machine: a Catalog is what a log of commits adds up to.

Knows no storage and no clock. A Catalog never changes; `after(commit)` gives the next one, so readers need no lock.
Rules: version numbers count up from 1 and are never given twice, not even after a deletion; what an alias or another package
refers to cannot be deleted; a blob's generation ends only while nothing refers to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from adapter_store.changes import Change, Collect, Commit, Delete, DropAlias, Publish, SetAlias, Summary
from adapter_store.errors import Conflict, NotFound
from adapter_store.names import DIGEST, LATEST, VERSION, Reference, shown

__all__ = ["Blob", "Catalog", "Commit", "Entry", "Pointer", "Summary", "VersionRecord"]


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version. `created` is the time of its commit, ISO 8601, UTC; `by` who made it; `signature` "signer:base64"."""

    name: str
    version: int
    digest: str
    created: str
    summary: Summary
    by: str = ""
    signature: str | None = None

    @property
    def reference(self) -> str:
        """The version as an answer names it: `spam@4`."""
        return f"{self.name}@{self.version}"

    @property
    def pin(self) -> str:
        """The version as a composition names it: `spam@sha256:...`."""
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Pointer:
    """What an alias points to: weights by version, in ascending order of versions, and what it pointed to before its last move."""

    weights: Mapping[int, int]
    before: Mapping[int, int] | None = None

    @property
    def version(self) -> int | None:
        """The version where there is only one, else None."""
        return next(iter(self.weights)) if len(self.weights) == 1 else None

    def pick(self, spot: float | None = None) -> int:
        """The version at `spot` in [0, 1); without a spot the heaviest, of equals the newest.

        Weights are laid end to end in ascending order of versions, so a canary that grows moves as few spots as can be.
        """
        if spot is None:
            return max(self.weights, key=lambda version: (self.weights[version], version))
        left = spot * sum(self.weights.values())
        for version, weight in self.weights.items():
            left -= weight
            if left < 0:
                return version
        return max(self.weights)


@dataclass(frozen=True, slots=True)
class Entry:
    """A name: its versions in ascending order, its aliases (without `latest`), and the last version number ever given."""

    name: str
    versions: Mapping[int, VersionRecord] = field(default_factory=dict)
    aliases: Mapping[str, Pointer] = field(default_factory=dict)
    last: int = 0

    @property
    def latest(self) -> VersionRecord:
        """The newest version that still exists."""
        return self.versions[max(self.versions)]

    def holding(self, digest: str) -> VersionRecord | None:
        """The version with this digest; a name holds a digest at most once."""
        return next((record for record in self.versions.values() if record.digest == digest), None)

    def version(self, version: int) -> VersionRecord:
        """One version; raises NotFound."""
        try:
            return self.versions[version]
        except KeyError:
            raise NotFound(f"The adapter '{self.name}' has no version {version}.") from None

    def alias(self, alias: str) -> Pointer:
        """One alias; raises NotFound."""
        try:
            return self.aliases[alias]
        except KeyError:
            raise NotFound(f"The adapter '{self.name}' has no alias {shown(alias)}.") from None


@dataclass(frozen=True, slots=True)
class Blob:
    """What the log says of a package's bytes: how many generations of them have ended, how many versions refer to them now, and when
    the last reference went (None while there are some, and where there never were any in this generation)."""

    generation: int = 0
    references: int = 0
    freed: str | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """The state after commit `n`. `_entries` keeps names whose versions are all gone, for their counters.

    `_blobs` and `_referrers` (references of the packages that are composed of a pin) are there so that no query searches everything.
    """

    n: int = 0
    _entries: Mapping[str, Entry] = field(default_factory=dict)
    _blobs: Mapping[str, Blob] = field(default_factory=dict)
    _referrers: Mapping[str, frozenset[str]] = field(default_factory=dict)

    # Queries

    def entries(self) -> list[Entry]:
        """All names, sorted."""
        return [entry for _, entry in sorted(self._entries.items()) if entry.versions]

    def entry(self, name: str) -> Entry:
        """One name; raises NotFound."""
        entry = self._entries.get(name)
        if entry is None or not entry.versions:
            raise NotFound(f"There is no adapter {shown(name)} in the store.")
        return entry

    def find(self, name: str) -> Entry | None:
        """One name, None where it has no versions."""
        entry = self._entries.get(name)
        return entry if entry is not None and entry.versions else None

    def resolve(self, reference: Reference, spot: float | None = None) -> VersionRecord:
        """The version that a reference means now; raises NotFound. `spot`, in [0, 1), decides where an alias is weighted (Pointer.pick)."""
        entry, selector = self.entry(reference.name), reference.selector
        if selector == LATEST:
            return entry.latest
        if DIGEST.fullmatch(selector):
            record = entry.holding(selector)
            what = "version with the digest"
        elif VERSION.fullmatch(selector):
            record = entry.versions.get(int(selector))
            what = "version"
        else:
            return entry.versions[entry.alias(selector).pick(spot)]
        if record is None:
            raise NotFound(f"The adapter '{entry.name}' has no {what} {shown(selector)}.")
        return record

    def weighted(self, reference: Reference) -> bool:
        """Whether a reference is an alias with several versions, so that `spot` decides. False for what does not exist."""
        entry = self.find(reference.name)
        pointer = None if entry is None else entry.aliases.get(reference.selector)
        return pointer is not None and pointer.version is None

    def holds(self, digest: str) -> bool:
        """Whether any version of any name has this digest."""
        return self.blob(digest).references > 0

    def blob(self, digest: str) -> Blob:
        """What the log says of a digest."""
        return self._blobs.get(digest, Blob())

    def next_version(self, name: str) -> int:
        """The number that the next version of a name gets."""
        return self._entries.get(name, Entry(name)).last + 1

    def changed(self, before: "Catalog") -> list[tuple[Entry, Entry]]:
        """The names that are not as they were in an earlier state: as they were then (without versions if at all) and as they are now."""
        was = before._entries
        return [(was.get(name, Entry(name)), entry) for name, entry in self._entries.items() if was.get(name) is not entry]

    # Changes

    def after(self, *commits: Commit) -> "Catalog":
        """The state after more commits; raises Conflict or NotFound where a change is not allowed in its state."""
        if not commits:
            return self
        draft = _Draft(self)
        n = self.n
        for commit in commits:
            if commit.n != n + 1:
                raise Conflict(f"Commit {commit.n} does not follow commit {n}.")
            draft.apply(commit.changes, commit.time, commit.by)
            n = commit.n
        return draft.catalog(n)

    def tried(self, changes: Iterable[Change]) -> "Catalog":
        """The state as it would be with changes that are not committed yet, under the number of this one. Raises like `after`."""
        draft = _Draft(self)
        draft.apply(changes, "", "")
        return draft.catalog(self.n)

    # Snapshots

    def contents(self) -> tuple[tuple[Entry, ...], dict[str, Blob]]:
        """What a snapshot keeps: all entries, and the blobs of which they do not tell everything."""
        blobs = {digest: replace(blob, references=0) for digest, blob in self._blobs.items() if blob.generation or blob.freed is not None}
        return tuple(self._entries.values()), blobs

    @classmethod
    def of(cls, n: int, entries: Iterable[Entry], blobs: Mapping[str, Blob]) -> "Catalog":
        """The state after commit `n` from its contents."""
        draft = _Draft(cls(n, {}, blobs))
        for entry in entries:
            draft.entries[entry.name] = entry
            for record in entry.versions.values():
                draft.refer(record)
        return draft.catalog(n)


class _Draft:
    """A state in the making: changed in place, then frozen. One that has raised is thrown away."""

    def __init__(self, catalog: Catalog) -> None:
        self.entries = dict(catalog._entries)
        self.blobs = dict(catalog._blobs)
        self.referrers = dict(catalog._referrers)

    def catalog(self, n: int) -> Catalog:
        return Catalog(n, self.entries, self.blobs, self.referrers)

    def apply(self, changes: Iterable[Change], time: str, by: str) -> None:
        for change in changes:
            match change:
                case Publish():
                    self._publish(change, time, by)
                case SetAlias():
                    self._point(change)
                case DropAlias():
                    entry = self._entry(change.name)
                    entry.alias(change.alias)
                    aliases = {alias: pointer for alias, pointer in entry.aliases.items() if alias != change.alias}
                    self.entries[entry.name] = replace(entry, aliases=aliases)
                case Delete():
                    self._delete(change, time)
                case Collect():
                    for digest in change.digests:
                        self._collect(digest)

    def refer(self, record: VersionRecord) -> None:
        blob = self.blobs.get(record.digest, Blob())
        self.blobs[record.digest] = Blob(blob.generation, blob.references + 1)
        for pin in set(record.summary.members):
            self.referrers[pin] = self.referrers.get(pin, frozenset()) | {record.reference}

    def _publish(self, change: Publish, time: str, by: str) -> None:
        entry = self.entries.get(change.name, Entry(change.name))
        if change.version != entry.last + 1:
            raise Conflict(f"Version {change.version} of '{change.name}' cannot be published: the next one is {entry.last + 1}.")
        if entry.holding(change.digest):
            raise Conflict(f"'{change.name}' already holds {change.digest}.")
        for member in change.summary.members:
            name, _, digest = member.partition("@")
            if name not in self.entries or not self.entries[name].holding(digest):
                raise NotFound(f"The package is composed of {member}, which is not in the store: publish that first.")
        record = VersionRecord(change.name, change.version, change.digest, time, change.summary, by, change.signature)
        self.refer(record)
        self.entries[entry.name] = replace(entry, versions={**entry.versions, change.version: record}, last=change.version)

    def _point(self, change: SetAlias) -> None:
        entry, target = self._entry(change.name), change.target
        for version in target:
            entry.version(version)
        old = entry.aliases.get(change.alias)
        if old is None or old.weights != target:
            pointer = Pointer(target, None if old is None else old.weights)
            self.entries[entry.name] = replace(entry, aliases={**entry.aliases, change.alias: pointer})

    def _delete(self, change: Delete, time: str) -> None:
        entry = self._entry(change.name)
        if change.version is None:
            gone = tuple(entry.versions.values())
            left = Entry(entry.name, last=entry.last)
        else:
            gone = (entry.version(change.version),)
            aliases = sorted(alias for alias, pointer in entry.aliases.items() if change.version in pointer.weights)
            if aliases:
                named = " and ".join(f"'{alias}'" for alias in aliases)
                points = f"alias {named} points to: move the alias" if len(aliases) == 1 else f"aliases {named} point to: move the aliases"
                raise Conflict(f"Version {change.version} of '{entry.name}' is what its {points} first.")
            left = replace(entry, versions={number: kept for number, kept in entry.versions.items() if number != change.version})
        self._check_unreferred(entry.name, gone)
        for record in gone:
            self._release(record, time)
        self.entries[entry.name] = left

    def _check_unreferred(self, name: str, records: tuple[VersionRecord, ...]) -> None:
        going = {record.reference for record in records}
        referrers = {referrer for record in records for referrer in self.referrers.get(record.pin, ())} - going
        if referrers:
            raise Conflict(f"'{name}' cannot be deleted while other packages are composed of it", sorted(referrers))

    def _release(self, record: VersionRecord, time: str) -> None:
        blob = self.blobs[record.digest]
        self.blobs[record.digest] = Blob(blob.generation, blob.references - 1, time if blob.references == 1 else None)
        for pin in set(record.summary.members):
            left = self.referrers[pin] - {record.reference}
            if left:
                self.referrers[pin] = left
            else:
                del self.referrers[pin]

    def _collect(self, digest: str) -> None:
        blob = self.blobs.get(digest, Blob())
        if blob.references:
            raise Conflict(f"{digest} cannot be collected while versions refer to it.")
        self.blobs[digest] = Blob(blob.generation + 1)

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None or not entry.versions:
            raise NotFound(f"There is no adapter {shown(name)} in the store.")
        return entry
