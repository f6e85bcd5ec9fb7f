"""Names, versions and aliases as a pure state machine: a Catalog is what a log of commits adds up to.

Knows no storage and no clock. A Catalog never changes; `after(commit)` gives the next one, so readers need no lock.
Rules: version numbers count up from 1 and are never given twice, not even after a deletion; what an alias or another package
refers to cannot be deleted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from adapter_store.errors import Conflict, NotFound
from adapter_store.methods import Frozen
from adapter_store.names import DIGEST, LATEST, VERSION, Reference, shown

Name = Annotated[str, Field(min_length=1, max_length=129)]
Digest = Annotated[str, Field(pattern=f"^{DIGEST.pattern}$")]


class Summary(Frozen):
    """What a listing shows of a package without opening it. `members` are the pinned references of its composition."""

    size: int
    parameters: int
    task: str | None = None
    head: str | None = None
    labels: int = 0
    methods: tuple[str, ...] = ()
    model_type: str = ""
    license: str = ""
    members: tuple[str, ...] = ()


class Publish(Frozen):
    """A new version of a name."""

    type: Literal["publish"] = "publish"
    name: Name
    version: int = Field(ge=1)
    digest: Digest
    summary: Summary


class SetAlias(Frozen):
    """An alias made or moved."""

    type: Literal["alias"] = "alias"
    name: Name
    alias: str = Field(min_length=1, max_length=64)
    version: int = Field(ge=1)


class Delete(Frozen):
    """One version removed, or the whole name with its aliases where `version` is None."""

    type: Literal["delete"] = "delete"
    name: Name
    version: int | None = None


Change = Annotated[Publish | SetAlias | Delete, Field(discriminator="type")]


class Commit(Frozen):
    """One entry of the log: changes that take effect together. `n` counts from 1; `time` is ISO 8601, UTC."""

    format: Literal["turret-log/1"] = "turret-log/1"
    n: int = Field(ge=1)
    time: str
    changes: tuple[Change, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version. `created` is the time of its commit, ISO 8601, UTC."""

    name: str
    version: int
    digest: str
    created: str
    summary: Summary

    @property
    def reference(self) -> str:
        """The version as an answer names it: `spam@4`."""
        return f"{self.name}@{self.version}"

    @property
    def pin(self) -> str:
        """The version as a composition names it: `spam@sha256:...`."""
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name: its versions in ascending order, its aliases (without `latest`), and the last version number ever given."""

    name: str
    versions: Mapping[int, VersionRecord] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    last: int = 0

    @property
    def latest(self) -> VersionRecord:
        """The newest version that still exists."""
        return self.versions[max(self.versions)]

    def holding(self, digest: str) -> VersionRecord | None:
        """The version with this digest; a name holds a digest at most once."""
        return next((record for record in self.versions.values() if record.digest == digest), None)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The state after commit `n`. `_entries` keeps names whose versions are all gone, for their counters."""

    n: int = 0
    _entries: Mapping[str, Entry] = field(default_factory=dict)

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

    def resolve(self, reference: Reference) -> VersionRecord:
        """The version that a reference means now; raises NotFound."""
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
            record = entry.versions.get(entry.aliases.get(selector, 0))
            what = "alias"
        if record is None:
            raise NotFound(f"The adapter '{entry.name}' has no {what} {shown(selector)}.")
        return record

    def holds(self, digest: str) -> bool:
        """Whether any version of any name has this digest."""
        return any(entry.holding(digest) for entry in self._entries.values())

    def next_version(self, name: str) -> int:
        """The number that the next version of a name gets."""
        return self._entries.get(name, Entry(name)).last + 1

    # Changes

    def after(self, commit: Commit) -> "Catalog":
        """The state after one more commit; raises Conflict or NotFound where a change is not allowed in this state."""
        if commit.n != self.n + 1:
            raise Conflict(f"Commit {commit.n} does not follow commit {self.n}.")
        state = self
        for change in commit.changes:
            changed = state._changed(change, commit.time)
            state = Catalog(commit.n, {**state._entries, changed.name: changed})
        return state

    def _changed(self, change: Change, time: str) -> Entry:
        match change:
            case Publish():
                return self._published(change, time)
            case SetAlias():
                entry = self.entry(change.name)
                _version(entry, change.version)
                return Entry(entry.name, entry.versions, {**entry.aliases, change.alias: change.version}, entry.last)
            case Delete():
                return self._deleted(change)

    def _published(self, change: Publish, time: str) -> Entry:
        entry = self._entries.get(change.name, Entry(change.name))
        if change.version != entry.last + 1:
            raise Conflict(f"Version {change.version} of '{change.name}' cannot be published: the next one is {entry.last + 1}.")
        if entry.holding(change.digest):
            raise Conflict(f"'{change.name}' already holds {change.digest}.")
        for member in change.summary.members:
            name, _, digest = member.partition("@")
            if name not in self._entries or not self._entries[name].holding(digest):
                raise NotFound(f"The package is composed of {member}, which is not in the store: publish that first.")
        record = VersionRecord(change.name, change.version, change.digest, time, change.summary)
        return Entry(entry.name, {**entry.versions, change.version: record}, entry.aliases, change.version)

    def _deleted(self, change: Delete) -> Entry:
        entry = self.entry(change.name)
        if change.version is None:
            self._check_unreferred(entry, tuple(entry.versions.values()))
            return Entry(entry.name, last=entry.last)
        record = _version(entry, change.version)
        aliases = sorted(alias for alias, version in entry.aliases.items() if version == change.version)
        if aliases:
            named = " and ".join(f"'{alias}'" for alias in aliases)
            raise Conflict(f"Version {change.version} of '{entry.name}' is what its alias {named} points to: move the alias first.")
        self._check_unreferred(entry, (record,))
        versions = {number: kept for number, kept in entry.versions.items() if number != change.version}
        return Entry(entry.name, versions, entry.aliases, entry.last)

    def _check_unreferred(self, entry: Entry, records: tuple[VersionRecord, ...]) -> None:
        pins = {record.pin for record in records}
        going = {record.reference for record in records}
        referrers = [other.reference for other in self._records() if other.reference not in going and pins & set(other.summary.members)]
        if referrers:
            shown_referrers = ", ".join(referrers[:5]) + (" ..." if len(referrers) > 5 else "")
            raise Conflict(f"'{entry.name}' cannot be deleted while other packages are composed of it: {shown_referrers}.")

    def _records(self) -> Iterator[VersionRecord]:
        for entry in self.entries():
            yield from entry.versions.values()


def _version(entry: Entry, version: int) -> VersionRecord:
    try:
        return entry.versions[version]
    except KeyError:
        raise NotFound(f"The adapter '{entry.name}' has no version {version}.") from None
