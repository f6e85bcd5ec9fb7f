"""What a store promises to one who publishes: versions, aliases, weights, rollback, deletes, several changes in one commit, history."""

from pathlib import Path
from typing import Any

import pytest
from places import Place
from samples import BACKBONE, MANIFEST, check_sentence, package, package_file

from adapter_store.catalog import Entry
from adapter_store.errors import AlreadyExists, Conflict, InvalidName, InvalidPackage, NotFound, StoreError, WrongBackbone
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.names import Reference, parse_reference
from adapter_store.package import open_package
from adapter_store.store import Store
from adapter_store.wishes import AliasWish, DeleteWish, PublishWish, RollbackWish, UnaliasWish, Wish

NO_SUCH = "sha256:" + "0" * 64


def weights(entry: Entry) -> dict[str, dict[int, int]]:
    return {alias: dict(pointer.weights) for alias, pointer in entry.aliases.items()}


# Publish and resolve


def test_versions_count_up(store: Store, tmp_path: Path) -> None:
    first = store.publish(package_file(tmp_path, 1), "spam", BACKBONE)
    second = store.publish(package_file(tmp_path, 2), "spam", BACKBONE)
    assert (first.created, second.created) == (True, True)
    assert [first.record.reference, second.record.reference] == ["spam@1", "spam@2"]
    assert store.resolve(Reference("spam")) == second.record
    assert store.resolve(parse_reference("spam@1")) == first.record
    assert store.resolve(parse_reference(f"spam@{first.record.digest}")) == first.record
    assert store.names() == ["spam"]
    assert store.show("spam").latest == second.record


def test_a_record_tells_what_a_listing_needs(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    record = store.publish(path, "acme/spam", BACKBONE, by="acme-ci", signature="acme-release:c2ln").record
    summary = record.summary
    assert (summary.task, summary.head, summary.labels, summary.methods) == ("text-classification", "classification", 2, ("bottleneck",))
    assert (summary.size, summary.model_type, summary.license) == (path.stat().st_size, "bert", "mit")
    assert summary.parameters == open_package(path).parameters
    assert record.created.endswith("Z")
    assert (record.by, record.signature) == ("acme-ci", "acme-release:c2ln")


def test_a_manifest_without_a_head_is_summarised(store: Store, tmp_path: Path) -> None:
    manifest = Manifest(methods=MANIFEST.methods, backbone=BACKBONE)
    summary = store.publish(package_file(tmp_path, 0, manifest), "spam").record.summary
    assert (summary.task, summary.head, summary.labels) == (None, None, 0)
    assert package(manifest) != package()


def test_the_bytes_come_back(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    record = store.publish(path, "spam").record
    assert store.read(record.digest) == path.read_bytes() == store.path(record.digest).read_bytes()
    assert store.manifest(record.digest) == MANIFEST
    for call in (store.read, store.path, store.manifest):
        for digest in (NO_SUCH, "../../etc/passwd", "sha256:x", ""):
            with pytest.raises(NotFound):
                call(digest)


def test_the_same_bytes_are_the_same_version(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    first = store.publish(path, "spam", alias="prod")
    n = store.catalog.n
    again = store.publish(path, "spam", alias="prod")
    assert (again.created, again.record) == (False, first.record)
    assert store.catalog.n == n
    store.publish(package_file(tmp_path, 1), "spam", alias="prod")
    moved = store.publish(path, "spam", alias="prod")
    assert (moved.created, moved.record.version) == (False, 1)
    assert store.resolve(parse_reference("spam@prod")).version == 1
    assert store.resolve(parse_reference("spam")).version == 2
    other = store.publish(path, "other")
    assert other.created
    assert other.record.digest == first.record.digest


def test_only_new(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    assert store.publish(path, "spam", only_new=True).created
    for again in (path, package_file(tmp_path, 1)):
        with pytest.raises(AlreadyExists, match="spam"):
            store.publish(again, "spam", only_new=True)
    assert len(store.show("spam").versions) == 1


def test_nothing_is_left_of_a_refused_publish(place: Place, tmp_path: Path) -> None:
    store = place.open()
    path = package_file(tmp_path)
    broken = tmp_path / "broken"
    broken.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidPackage):
        store.publish(broken, "spam")
    with pytest.raises(WrongBackbone):
        store.publish(path, "spam", Backbone(model_type="bert", hidden_size=16, num_layers=2))
    for name in ("base", "../x", "Spam", ""):
        with pytest.raises(InvalidName):
            store.publish(path, name)
    for alias in ("latest", "3", "../x"):
        with pytest.raises(InvalidName):
            store.publish(path, "spam", alias=alias)
    composed = MANIFEST.model_copy(update={"composition": f"stack(other@{NO_SUCH}, self)"})
    with pytest.raises(NotFound, match="other"):
        store.publish(package_file(tmp_path, 3, composed), "spam")
    with pytest.raises(InvalidPackage, match="at most 100"):
        place.open(max_size=100).publish(path, "spam")
    assert store.names() == []
    assert place.keys("blobs") == []
    assert store.catalog.n == 0


def test_packages_of_one_commit(store: Store, tmp_path: Path) -> None:
    member = open_package(package_file(tmp_path, 1))
    composed = MANIFEST.model_copy(update={"composition": f"stack(lang@{member.digest}, self)"})
    paths = [package_file(tmp_path, 1), package_file(tmp_path, 2, composed)]
    packages = [(name, open_package(path), path) for name, path in zip(("lang", "ner"), paths, strict=True)]
    with pytest.raises(NotFound, match="lang"):
        store.publish_all(packages[::-1])
    published = store.publish_all(packages, alias="prod", by="acme-ci", signature="acme-release:c2ln")
    assert [result.record.reference for result in published] == ["lang@1", "ner@1"]
    assert [result.record.signature for result in published] == [None, "acme-release:c2ln"]
    assert (store.catalog.n, weights(store.show("lang")), weights(store.show("ner"))) == (1, {}, {"prod": {1: 1}})


@pytest.mark.parametrize("model", ["spam", "spam@1", "spam@prod", f"spam@{NO_SUCH}"])
def test_unknown_names(store: Store, model: str) -> None:
    with pytest.raises(NotFound, match="spam"):
        store.resolve(parse_reference(model))
    with pytest.raises(NotFound):
        store.show("spam")


def test_unknown_selectors(store: Store, tmp_path: Path) -> None:
    store.publish(package_file(tmp_path), "spam")
    for selector in ("2", "prod", NO_SUCH):
        with pytest.raises(NotFound, match=f"'{selector}'"):
            store.resolve(Reference("spam", selector))


# Aliases


def test_aliases_move(store: Store, tmp_path: Path) -> None:
    for seed in (1, 2):
        store.publish(package_file(tmp_path, seed), "spam", alias="prod")
    assert store.resolve(parse_reference("spam@prod")).version == 2
    assert weights(store.set_alias("spam", "prod", 1)) == {"prod": {1: 1}}
    n = store.catalog.n
    store.set_alias("spam", "prod", 1)
    assert store.catalog.n == n
    for name, alias, version, error in (
        ("spam", "prod", 3, NotFound),
        ("spam", "prod", 0, NotFound),
        ("ham", "prod", 1, NotFound),
        ("spam", "latest", 1, InvalidName),
    ):
        with pytest.raises(error):
            store.set_alias(name, alias, version)
    assert weights(store.drop_alias("spam", "prod")) == {}
    with pytest.raises(NotFound, match="prod"):
        store.drop_alias("spam", "prod")
    with pytest.raises(NotFound, match="prod"):
        store.resolve(parse_reference("spam@prod"))


def test_weighted_aliases(store: Store, tmp_path: Path) -> None:
    for seed in range(4):
        store.publish(package_file(tmp_path, seed), "spam")
    store.set_alias("spam", "canary", {4: 10, 3: 90})
    reference = parse_reference("spam@canary")
    assert store.catalog.weighted(reference)
    for other in ("spam", "spam@3", "ham@canary", "spam@prod"):
        assert not store.catalog.weighted(parse_reference(other))
    assert [store.resolve(reference, spot).version for spot in (0.0, 0.899, 0.9, 0.999)] == [3, 3, 4, 4]
    assert store.resolve(reference).version == 3
    store.set_alias("spam", "canary", {3: 1, 4: 1})
    assert store.resolve(reference).version == 4
    for target in ({}, {3: 0}, {3: -1, 4: 1}, dict.fromkeys(range(1, 18), 1), {3: 10_000_000}):
        with pytest.raises(InvalidName, match="canary"):
            store.set_alias("spam", "canary", target)
    with pytest.raises(NotFound, match="9"):
        store.set_alias("spam", "canary", {3: 1, 9: 1})
    with pytest.raises(Conflict, match="its alias 'canary' points to: move the alias first"):
        store.delete("spam", 3)
    store.set_alias("spam", "beta", 3)
    with pytest.raises(Conflict, match="its aliases 'beta' and 'canary' point to: move the aliases first"):
        store.delete("spam", 3)
    store.set_alias("spam", "beta", 4)
    store.set_alias("spam", "canary", {4: 70})
    assert not store.catalog.weighted(reference)
    assert store.show("spam").aliases["canary"].version == 4
    store.delete("spam", 3)


def test_rollback_is_a_move_back(store: Store, tmp_path: Path) -> None:
    for seed in range(3):
        store.publish(package_file(tmp_path, seed), "spam")
    store.set_alias("spam", "prod", 1)
    with pytest.raises(Conflict, match="nothing to roll back to"):
        store.rollback("spam", "prod")
    store.set_alias("spam", "prod", {1: 9, 2: 1})
    store.set_alias("spam", "prod", 3)
    assert weights(store.rollback("spam", "prod")) == {"prod": {1: 9, 2: 1}}
    assert weights(store.rollback("spam", "prod")) == {"prod": {3: 1}}
    store.delete("spam", 1)
    with pytest.raises(Conflict, match="version 1"):
        store.rollback("spam", "prod")
    for name, alias in (("spam", "canary"), ("ham", "prod")):
        with pytest.raises(NotFound):
            store.rollback(name, alias)


# Deletes


def test_numbers_are_never_given_twice(store: Store, tmp_path: Path) -> None:
    paths = [package_file(tmp_path, seed) for seed in range(3)]
    store.publish(paths[0], "spam")
    store.publish(paths[1], "spam")
    store.delete("spam", 2)
    assert store.resolve(Reference("spam")).version == 1
    assert store.publish(paths[1], "spam").record.version == 3
    store.delete("spam")
    assert store.names() == []
    assert store.publish(paths[0], "spam").record.version == 4


def test_a_delete_tells_what_nothing_refers_to_any_more(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    digest = store.publish(path, "spam").record.digest
    store.publish(path, "ham")
    assert store.delete("spam", 1) == ()
    assert store.names() == ["ham"]
    assert store.delete("ham") == (digest,)
    assert store.read(digest) == path.read_bytes()


def test_what_is_referred_to_stays(store: Store, tmp_path: Path) -> None:
    member = store.publish(package_file(tmp_path, 1), "lang", alias="prod").record
    with pytest.raises(Conflict, match="'prod'") as caught:
        store.delete("lang", 1)
    assert caught.value.referrers == ()
    composed = MANIFEST.model_copy(update={"composition": f"stack({member.pin}, self)"})
    record = store.publish(package_file(tmp_path, 2, composed), "acme/ner").record
    store.publish(package_file(tmp_path, 2, composed), "ner")
    assert record.summary.members == (member.pin,)
    with pytest.raises(Conflict, match="acme/ner@1, ner@1") as caught:
        store.delete("lang")
    assert caught.value.referrers == ("acme/ner@1", "ner@1")
    for sees, shown, kept in (("acme/ner", "acme/ner@1", " ner@1"), ("", "that you may not see", "ner@1")):
        sentence = caught.value.hidden(lambda name, sees=sees: name == sees)  # type: ignore[misc]
        assert shown in sentence
        assert kept not in sentence
    store.delete("ner")
    store.delete("acme/ner")
    store.delete("lang")
    assert store.names() == []


def test_unknown_deletes(store: Store, tmp_path: Path) -> None:
    store.publish(package_file(tmp_path), "spam")
    for name, version in (("spam", 2), ("ham", None), ("ham", 1)):
        with pytest.raises(NotFound):
            store.delete(name, version)


# Several changes in one commit


def test_several_changes_are_one_commit(store: Store, tmp_path: Path) -> None:
    first = store.publish(package_file(tmp_path, 1), "staging/spam", alias="prod", signature="acme-release:c2ln").record
    second = store.publish(package_file(tmp_path, 2), "staging/spam").record
    store.publish(package_file(tmp_path, 3), "old")
    n = store.catalog.n
    wishes: list[Wish] = [
        PublishWish("spam", parse_reference("staging/spam@prod"), "prod"),
        PublishWish("spam", parse_reference("staging/spam")),
        AliasWish("spam", "canary", {1: 90, 2: 10}),
        UnaliasWish("staging/spam", "prod"),
        DeleteWish("staging/spam"),
        DeleteWish("old"),
    ]
    changed = store.change(wishes, by="alice")
    assert changed.catalog.n == n + 1
    assert changed.commit is not None
    assert (changed.commit.n, changed.commit.by, len(changed.commit.changes)) == (n + 1, "alice", 7)
    assert store.names() == ["spam"]
    entry = store.show("spam")
    assert {version: record.digest for version, record in entry.versions.items()} == {1: first.digest, 2: second.digest}
    assert (entry.versions[1].signature, entry.versions[1].by) == ("acme-release:c2ln", "alice")
    assert weights(entry) == {"prod": {1: 1}, "canary": {1: 90, 2: 10}}
    assert changed.freed == (open_package(package_file(tmp_path, 3)).digest,)
    assert store.change([AliasWish("spam", "prod", 1)]).commit is None


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        (DeleteWish("ham"), NotFound),
        (DeleteWish("spam", 1), Conflict),
        (AliasWish("spam", "prod", 7), NotFound),
        (UnaliasWish("spam", "nope"), NotFound),
        (RollbackWish("spam", "prod"), Conflict),
        (PublishWish("base", Reference("spam")), InvalidName),
        (PublishWish("other", Reference("ham")), NotFound),
        (PublishWish("other", Reference("spam"), "latest"), InvalidName),
    ],
)
def test_one_refusal_refuses_all(store: Store, tmp_path: Path, wish: Wish, error: type[StoreError]) -> None:
    store.publish(package_file(tmp_path), "spam", alias="prod")
    before = store.catalog
    with pytest.raises(error) as caught:
        store.change([AliasWish("spam", "canary", 1), PublishWish("copy", Reference("spam")), wish])
    check_sentence(caught.value)
    assert store.catalog is before
    assert not store.refresh()


# History


def test_history_says_who_did_what(store: Store, tmp_path: Path) -> None:
    for seed in range(3):
        store.publish(package_file(tmp_path, seed), "spam", by="alice")
    store.publish(package_file(tmp_path, 3), "ham", by="bob")
    store.set_alias("spam", "prod", {1: 1, 2: 3}, by="carol")
    store.delete("ham", by="bob")
    store.collect(grace=0)
    everything = store.history()
    assert [commit.n for commit in everything.commits] == [7, 6, 5, 4, 3, 2, 1]
    assert [commit.by for commit in everything.commits] == ["", "bob", "carol", "bob", "alice", "alice", "alice"]
    assert everything.next_before is None
    assert all(commit.time.endswith("Z") for commit in everything.commits)
    ham = store.history("ham")
    assert [change.type for commit in ham.commits for change in commit.changes] == ["delete", "publish"]
    pages: list[int] = []
    before: Any = None
    while True:
        page = store.history("spam", before, limit=2)
        pages += [commit.n for commit in page.commits]
        before = page.next_before
        if before is None:
            break
    assert pages == [5, 3, 2, 1]
    assert store.history("nobody").commits == ()
    assert store.history(before=1) == store.history(before=-5)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError, match="is a file and a store is a folder"):
        Store.open(str(tmp_path / "file"))
