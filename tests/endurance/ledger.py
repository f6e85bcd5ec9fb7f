"""What one client of the kill test asks of its names, and what the catalogue must hold after each step. Pure: sends nothing.

Every step is one commit, or none where everything was so already. A step whose answer never came may have been done or not, and
nothing in between: `visible` of the one state or of the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tests.endurance.fleet import Made

Weights = Mapping[int, int]
Names = Mapping[str, "Held"]


@dataclass(frozen=True, slots=True)
class Held:
    """One name: digests by version, where its aliases point and pointed before, and the last version number given."""

    versions: Mapping[int, str] = field(default_factory=dict)
    aliases: Mapping[str, Weights] = field(default_factory=dict)
    before: Mapping[str, Weights] = field(default_factory=dict)
    last: int = 0

    def published(self, digest: str) -> "Held":
        """With a digest as the newest version, unless it is one already."""
        if digest in self.versions.values():
            return self
        return replace(self, versions={**self.versions, self.last + 1: digest}, last=self.last + 1)

    def version_of(self, digest: str) -> int:
        """The version with a digest."""
        return next(version for version, one in self.versions.items() if one == digest)

    def pointed(self, alias: str, weights: Weights) -> "Held":
        """With an alias that points elsewhere."""
        old = self.aliases.get(alias)
        if old == weights:
            return self
        before = self.before if old is None else {**self.before, alias: old}
        return replace(self, aliases={**self.aliases, alias: dict(weights)}, before=before)

    def without(self, version: int) -> "Held":
        """Without a version."""
        return replace(self, versions={number: digest for number, digest in self.versions.items() if number != version})

    def without_alias(self, alias: str) -> "Held":
        """Without an alias."""
        return replace(
            self,
            aliases={name: weights for name, weights in self.aliases.items() if name != alias},
            before={name: weights for name, weights in self.before.items() if name != alias},
        )

    @property
    def loose(self) -> list[int]:
        """Versions that no alias points to."""
        return [version for version in self.versions if not any(version in weights for weights in self.aliases.values())]

    @property
    def visible(self) -> tuple[dict[int, str], dict[str, dict[int, int]]] | None:
        """What a listing shows; None for a name without versions."""
        return (dict(self.versions), {alias: dict(weights) for alias, weights in self.aliases.items()}) if self.versions else None


@dataclass(frozen=True, slots=True)
class Step:
    """One request, the names that it changes as they are after it, and what it publishes. `slow`: its body comes in pieces."""

    kind: str
    method: str
    path: str
    after: Names
    json: Any = None
    package: Made | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False


def drawn(random: Random, names: Names, pool: Sequence[Made], focus: str) -> Step:
    """A step that the catalogue allows; `focus` is a kind that comes more often."""
    kinds = list(STEPS)
    for _ in range(20):
        kind = focus if focus in STEPS and random.random() < 0.5 else random.choice(kinds)
        step = STEPS[kind](random, random.choice(sorted(names)), names, pool)
        if step is not None:
            return step
    return _publish(random, random.choice(sorted(names)), names, pool)


def _publish(random: Random, name: str, names: Names, pool: Sequence[Made], slow: bool = False) -> Step:
    package = random.choice(pool)
    held = names[name].published(package.digest)
    alias = random.choice([None, "prod"])
    if alias is not None:
        held = held.pointed(alias, {held.version_of(package.digest): 1})
    kind = "upload" if slow else "publish"
    return Step(kind, "PUT", f"/v1/adapters/{name}", {name: held}, package=package, params={"alias": alias} if alias else {}, slow=slow)


def _upload(random: Random, name: str, names: Names, pool: Sequence[Made]) -> Step:
    return _publish(random, name, names, pool, slow=True)


def _alias(random: Random, name: str, names: Names, pool: Sequence[Made]) -> Step | None:
    held, alias = names[name], random.choice(["prod", "canary"])
    if not held.versions:
        return None
    some = random.sample(sorted(held.versions), min(len(held.versions), random.choice([1, 1, 2, 3])))
    weights = {some[0]: 1} if len(some) == 1 else {version: random.randint(1, 90) for version in some}
    return Step("alias", "PUT", f"/v1/adapters/{name}/aliases/{alias}", {name: held.pointed(alias, weights)}, json=_target(weights))


def _unalias(random: Random, name: str, names: Names, pool: Sequence[Made]) -> Step | None:
    held = names[name]
    if not held.aliases:
        return None
    alias = random.choice(sorted(held.aliases))
    return Step("unalias", "DELETE", f"/v1/adapters/{name}/aliases/{alias}", {name: held.without_alias(alias)})


def _roll_back(random: Random, name: str, names: Names, pool: Sequence[Made]) -> Step | None:
    held = names[name]
    possible = [alias for alias, weights in held.before.items() if all(version in held.versions for version in weights)]
    if not possible:
        return None
    alias = random.choice(possible)
    after = held.pointed(alias, held.before[alias])
    return Step("rollback", "POST", f"/v1/adapters/{name}/aliases/{alias}/rollback", {name: after})


def _delete(random: Random, name: str, names: Names, pool: Sequence[Made]) -> Step | None:
    held = names[name]
    if not held.loose:
        return None
    version = random.choice(held.loose)
    return Step("delete", "DELETE", f"/v1/adapters/{name}/versions/{version}", {name: held.without(version)})


def _delete_name(random: Random, name: str, names: Names, pool: Sequence[Made]) -> Step | None:
    held = names[name]
    if len(held.versions) < 3:
        return None
    return Step("delete name", "DELETE", f"/v1/adapters/{name}", {name: Held(last=held.last)})


def _several(random: Random, name: str, names: Names, pool: Sequence[Made]) -> Step | None:
    """In one commit: a package of one name published under another, an alias of the first moved, an old version of it deleted."""
    held, other = names[name], random.choice(sorted(names))
    if other == name or not held.versions or not held.loose:
        return None
    source, version = random.choice(sorted(held.versions)), random.choice(sorted(held.versions))
    digest = held.versions[source]
    target = names[other].published(digest)
    target = target.pointed("prod", {target.version_of(digest): 1})
    after = held.pointed("prod", {version: 1})
    changes: list[dict[str, Any]] = [
        {"type": "publish", "name": other, "source": f"{name}@{source}", "alias": "prod"},
        {"type": "alias", "name": name, "alias": "prod", "version": version},
    ]
    if after.loose:
        gone = random.choice(after.loose)
        after = after.without(gone)
        changes.append({"type": "delete", "name": name, "version": gone})
    return Step("several", "POST", "/v1/changes", {name: after, other: target}, json={"changes": changes})


Drawing = Callable[[Random, str, Names, Sequence[Made]], Step | None]
STEPS: dict[str, Drawing] = {
    "publish": _publish,
    "upload": _upload,
    "alias": _alias,
    "unalias": _unalias,
    "rollback": _roll_back,
    "delete": _delete,
    "delete name": _delete_name,
    "several": _several,
}


def _target(weights: Weights) -> dict[str, Any]:
    if len(weights) == 1:
        return {"version": next(iter(weights))}
    return {"weights": {str(version): weight for version, weight in weights.items()}}
