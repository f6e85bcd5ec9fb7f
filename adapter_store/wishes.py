"""What people ask of the catalogue, the changes that it takes in the state of the moment, and what came of them. No storage, no clock.

A wish is planned anew whenever another writer was first, so it says what shall be, not which numbers are to be written.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapter_store.catalog import Catalog
from adapter_store.changes import MAX_WEIGHT, MAX_WEIGHTS, Change, Commit, Delete, DropAlias, Publish, SetAlias, pointed
from adapter_store.errors import Conflict, InvalidName, NotFound
from adapter_store.names import Reference, check_alias, check_name


@dataclass(frozen=True, slots=True)
class PublishWish:
    """A package that is in the store, as the next version of another name (or of its own); with its signature. `alias` moves to it."""

    name: str
    source: Reference
    alias: str | None = None

    def changes(self, catalog: Catalog) -> list[Change]:
        check_name(self.name)
        record = catalog.resolve(self.source)
        entry = catalog.find(self.name)
        existing = None if entry is None else entry.holding(record.digest)
        version = catalog.next_version(self.name) if existing is None else existing.version
        changes: list[Change] = []
        if existing is None:
            changes.append(
                Publish(name=self.name, version=version, digest=record.digest, summary=record.summary, signature=record.signature)
            )
        if self.alias is not None:
            changes += alias_changes(catalog, self.name, self.alias, version)
        return changes


@dataclass(frozen=True, slots=True)
class AliasWish:
    """An alias made or moved: to a version, or to several by weight."""

    name: str
    alias: str
    target: int | Mapping[int, int]

    def changes(self, catalog: Catalog) -> list[Change]:
        catalog.entry(self.name)
        return alias_changes(catalog, self.name, self.alias, self.target)


@dataclass(frozen=True, slots=True)
class UnaliasWish:
    """An alias removed."""

    name: str
    alias: str

    def changes(self, catalog: Catalog) -> list[Change]:
        catalog.entry(self.name).alias(self.alias)
        return [DropAlias(name=self.name, alias=self.alias)]


@dataclass(frozen=True, slots=True)
class RollbackWish:
    """An alias moved back to where it pointed before its last move; a second time undoes the first."""

    name: str
    alias: str

    def changes(self, catalog: Catalog) -> list[Change]:
        entry = catalog.entry(self.name)
        before = entry.alias(self.alias).before
        if before is None:
            raise Conflict(f"The alias '{self.alias}' of '{self.name}' has not moved yet, so there is nothing to roll back to.")
        gone = [version for version in before if version not in entry.versions]
        if gone:
            raise Conflict(
                f"The alias '{self.alias}' of '{self.name}' cannot be rolled back: version {gone[0]}, which it pointed to, is deleted."
            )
        return alias_changes(catalog, self.name, self.alias, before)


@dataclass(frozen=True, slots=True)
class DeleteWish:
    """One version removed, or the name with all of them where `version` is None."""

    name: str
    version: int | None = None

    def changes(self, catalog: Catalog) -> list[Change]:
        catalog.entry(self.name)
        return [Delete(name=self.name, version=self.version)]


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change did: the state after it, its commit (None where everything was so already), and the digests that nothing refers
    to any more. Their blobs wait for `collect`."""

    catalog: Catalog
    commit: Commit | None = None
    freed: tuple[str, ...] = ()


Wish = PublishWish | AliasWish | UnaliasWish | RollbackWish | DeleteWish


def plan(wishes: Iterable[Wish], catalog: Catalog) -> list[Change]:
    """The changes that fulfil wishes one after the other; raises what the catalogue or the grammar of names says against one of them."""
    changes: list[Change] = []
    for wish in wishes:
        step = wish.changes(catalog)
        catalog = catalog.tried(step)
        changes += step
    return changes


def freed(before: Catalog, after: Catalog, commit: Commit) -> tuple[str, ...]:
    """Digests that a commit took the last reference from."""
    touched: dict[str, None] = {}
    for change in commit.changes:
        if isinstance(change, Delete):
            entry = before.find(change.name)
            touched |= dict.fromkeys(record.digest for record in entry.versions.values()) if entry is not None else {}
        elif isinstance(change, Publish):
            touched[change.digest] = None
    return tuple(digest for digest in touched if not after.holds(digest))


def alias_changes(catalog: Catalog, name: str, alias: str, target: int | Mapping[int, int]) -> list[Change]:
    """What moves an alias to its target: nothing where it points there already."""
    check_alias(alias)
    given = {target: 1} if isinstance(target, int) else target
    if not 1 <= len(given) <= MAX_WEIGHTS or not all(1 <= weight <= MAX_WEIGHT for weight in given.values()):
        raise InvalidName(
            f"The alias '{alias}' of '{name}' needs 1 to {MAX_WEIGHTS} versions, with whole weights from 1 to {MAX_WEIGHT:,}."
        )
    if min(given) < 1:
        raise NotFound(f"The adapter '{name}' has no version {min(given)}.")
    weights = pointed(given)
    entry = catalog.find(name)
    if entry is not None and alias in entry.aliases and entry.aliases[alias].weights == weights:
        return []
    version = next(iter(weights)) if len(weights) == 1 else None
    return [SetAlias(name=name, alias=alias, version=version, weights=None if version is not None else weights)]
