"""The catalogue as a state machine, against a model of a few lines; weighted picks; atomic commits; snapshots of every state."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adapter_store.catalog import Catalog, Pointer
from adapter_store.changes import MAX_WEIGHTS, Change, Collect, Commit, Delete, DropAlias, Publish, SetAlias, Summary
from adapter_store.errors import Conflict, NotFound, StoreError
from adapter_store.log import _dump, _load
from adapter_store.names import Reference
from adapter_store.wishes import AliasWish, DeleteWish, PublishWish, RollbackWish, UnaliasWish, Wish, plan

NAMES = ("a", "b", "c")
ALIASES = ("prod", "canary")
DIGESTS = tuple(f"sha256:{i:064x}" for i in range(4))
SUMMARY = Summary(size=1, parameters=1)

names = st.sampled_from(NAMES)
aliases = st.sampled_from(ALIASES)
digests = st.sampled_from(DIGESTS)
pointed_to = st.one_of(st.integers(1, 6), st.dictionaries(st.integers(1, 6), st.integers(1, 9), min_size=1, max_size=3))


def plain(target: Any) -> dict[int, int]:
    weights = {target: 1} if isinstance(target, int) else target
    return {version: 1 if len(weights) == 1 else weights[version] for version in sorted(weights)}


class Model:
    """What the catalogue shall be, kept as plainly as possible."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[int, tuple[str, tuple[str, ...]]]] = {name: {} for name in NAMES}
        self.last = dict.fromkeys(NAMES, 0)
        self.aliases: dict[tuple[str, str], tuple[dict[int, int], dict[int, int] | None]] = {}
        self.generations: Counter[str] = Counter()

    def references(self, digest: str) -> int:
        return sum(held == digest for versions in self.versions.values() for held, _ in versions.values())

    def pinned(self, name: str, version: int | None) -> bool:
        going = [v for v in self.versions[name] if version in (None, v)]
        pins = {f"{name}@{self.versions[name][v][0]}" for v in going}
        return any(
            pins & set(members)
            for other, versions in self.versions.items()
            for number, (_, members) in versions.items()
            if not (other == name and number in going)
        )


class CatalogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.catalog = Catalog()
        self.log: list[Commit] = []
        self.model = Model()

    def commit(self, *changes: Change) -> bool:
        """Commits if the catalogue allows it; the commit reads as it was written."""
        n = self.catalog.n + 1
        commit = Commit(n=n, time=f"2026-01-01T00:00:{n % 60:02d}Z", by="me", changes=changes)
        assert Commit.model_validate_json(commit.model_dump_json(exclude_none=True)) == commit
        before = self.catalog
        try:
            self.catalog = before.after(commit)
        except (Conflict, NotFound):
            assert self.catalog is before
            return False
        self.log.append(commit)
        return True

    @rule(name=names, digest=digests, members=st.lists(st.tuples(names, digests), max_size=2))
    def publish(self, name: str, digest: str, members: list[tuple[str, str]]) -> None:
        model = self.model
        pins = tuple(f"{member}@{held}" for member, held in members)
        there = all(any(held == wanted for held, _ in model.versions[member].values()) for member, wanted in members)
        new = all(held != digest for held, _ in model.versions[name].values())
        summary = SUMMARY.model_copy(update={"members": pins})
        change = Publish(name=name, version=self.catalog.next_version(name), digest=digest, summary=summary)
        assert self.commit(change) == (there and new)
        if there and new:
            model.last[name] += 1
            model.versions[name][model.last[name]] = (digest, pins)

    @rule(name=names, alias=aliases, to=pointed_to)
    def point(self, name: str, alias: str, to: Any) -> None:
        model, weights = self.model, plain(to)
        allowed = bool(model.versions[name]) and set(weights) <= set(model.versions[name])
        single = isinstance(to, int)
        change = SetAlias(name=name, alias=alias, version=to if single else None, weights=None if single else to)
        assert self.commit(change) == allowed
        if allowed:
            old = model.aliases.get((name, alias))
            if old is None or old[0] != weights:
                model.aliases[name, alias] = (weights, None if old is None else old[0])

    @rule(name=names, alias=aliases)
    def unalias(self, name: str, alias: str) -> None:
        assert self.commit(DropAlias(name=name, alias=alias)) == ((name, alias) in self.model.aliases)
        self.model.aliases.pop((name, alias), None)

    @rule(name=names, alias=aliases)
    def roll_back(self, name: str, alias: str) -> None:
        model = self.model
        now, before = model.aliases.get((name, alias), (None, None))
        allowed = now is not None and before is not None and set(before) <= set(model.versions[name])
        try:
            changes = plan([RollbackWish(name, alias)], self.catalog)
        except (Conflict, NotFound):
            assert not allowed
            return
        assert allowed
        assert self.commit(*changes)
        assert before is not None
        model.aliases[name, alias] = (before, now)

    @rule(name=names, version=st.one_of(st.none(), st.integers(1, 6)))
    def delete(self, name: str, version: int | None) -> None:
        model = self.model
        there = bool(model.versions[name]) if version is None else version in model.versions[name]
        pointed = any(of == name and version in weights for (of, _), (weights, _) in model.aliases.items())
        allowed = there and not pointed and not model.pinned(name, version)
        assert self.commit(Delete(name=name, version=version)) == allowed
        if allowed:
            model.versions[name] = {v: held for v, held in model.versions[name].items() if version not in (None, v)}
            if version is None:
                model.aliases = {key: value for key, value in model.aliases.items() if key[0] != name}

    @rule(some=st.lists(digests, min_size=1, max_size=3, unique=True))
    def collect(self, some: list[str]) -> None:
        allowed = not any(self.model.references(digest) for digest in some)
        assert self.commit(Collect(digests=tuple(some))) == allowed
        if allowed:
            self.model.generations.update(some)

    @rule(wishes=st.lists(st.one_of(
        st.builds(PublishWish, names, st.builds(Reference, names), st.one_of(st.none(), aliases)),
        st.builds(AliasWish, names, aliases, pointed_to),
        st.builds(UnaliasWish, names, aliases),
        st.builds(DeleteWish, names, st.one_of(st.none(), st.integers(1, 6))),
    ), min_size=2, max_size=3))  # fmt: skip
    def several(self, wishes: list[Wish]) -> None:
        """All at once is as one after the other; and where one is refused, nothing has happened."""
        catalog = self.catalog
        try:
            for wish in wishes:
                catalog = catalog.tried(plan([wish], catalog))
        except StoreError as error:
            with pytest.raises(type(error)):
                plan(wishes, self.catalog)
        else:
            assert self.catalog.tried(plan(wishes, self.catalog)) == catalog

    @invariant()
    def the_catalogue_is_the_model(self) -> None:
        catalog, model = self.catalog, self.model
        assert [entry.name for entry in catalog.entries()] == [name for name in NAMES if model.versions[name]]
        for entry in catalog.entries():
            assert {v: record.digest for v, record in entry.versions.items()} == {v: d for v, (d, _) in model.versions[entry.name].items()}
            assert list(entry.versions) == sorted(entry.versions)
            assert entry.last == model.last[entry.name]
            pointers = {alias: (dict(p.weights), None if p.before is None else dict(p.before)) for alias, p in entry.aliases.items()}
            assert pointers == {alias: value for (name, alias), value in model.aliases.items() if name == entry.name}
            assert all(set(pointer.weights) <= set(entry.versions) for pointer in entry.aliases.values())
            assert catalog.resolve(Reference(entry.name)).version == max(entry.versions)
        for digest in DIGESTS:
            blob = catalog.blob(digest)
            assert (blob.references, blob.generation) == (model.references(digest), model.generations[digest])
            assert blob.references == 0 or blob.freed is None

    def teardown(self) -> None:
        assert Catalog().after(*self.log) == self.catalog
        assert _load(_dump(self.catalog), self.catalog.n) == self.catalog
        super().teardown()


CatalogMachine.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestCatalogMachine = CatalogMachine.TestCase


def test_several_changes_are_one_step() -> None:
    publish = Publish(name="a", version=1, digest=DIGESTS[0], summary=SUMMARY)
    bad = Commit(n=1, time="", changes=(publish, SetAlias(name="a", alias="prod", version=2)))
    catalog = Catalog()
    with pytest.raises(NotFound):
        catalog.after(bad)
    assert catalog.entries() == []
    with pytest.raises(Conflict, match="follow"):
        catalog.after(Commit(n=3, time="", changes=(publish,)))


@given(st.dictionaries(st.integers(1, 99), st.integers(1, 1000), min_size=1, max_size=MAX_WEIGHTS), st.floats(0, 1, exclude_max=True))
def test_a_spot_has_one_version(weights: dict[int, int], spot: float) -> None:
    pointer = Pointer(plain(weights))
    total = sum(pointer.weights.values())
    before = 0
    for version, weight in pointer.weights.items():
        if before <= spot * total < before + weight:
            assert pointer.pick(spot) == version
        before += weight
    assert pointer.weights[pointer.pick()] == max(pointer.weights.values())


@given(st.integers(1, 98))
def test_a_growing_canary_moves_only_those_who_come_to_it(share: int) -> None:
    small, large = Pointer({3: 100 - share, 4: share}), Pointer({3: 99 - share, 4: share + 1})
    spots = [(i + 0.5) / 1000 for i in range(1000)]
    moved = [spot for spot in spots if small.pick(spot) != large.pick(spot)]
    assert len(moved) == 10
    assert {large.pick(spot) for spot in moved} == {4}
    assert sum(small.pick(spot) == 4 for spot in spots) == 10 * share
