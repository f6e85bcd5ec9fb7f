"""What `change` asks for: changes of the catalogue that happen together or not at all, as small frozen values.

Each knows its form on the wire and refuses what no server would take. Who wants a change that this client does not know yet
passes its JSON object instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turret_client.errors import InvalidArgument
from turret_client.names import checked_name, checked_reference, checked_selector

Target = int | Mapping[int, int]
"""Where an alias points: a version, or versions with their weights, such as {3: 90, 4: 10}."""

MOST_VERSIONS = 16  # that one alias can be spread over


@dataclass(frozen=True, slots=True)
class SetAlias:
    """Points an alias to a version, or spreads it over several by weight."""

    name: str
    alias: str
    target: Target

    def wire(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return _of("alias", self.name, alias=checked_selector(self.alias, self.name), **target_fields(self.target))


@dataclass(frozen=True, slots=True)
class DropAlias:
    """Removes an alias."""

    name: str
    alias: str

    def wire(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return _of("unalias", self.name, alias=checked_selector(self.alias, self.name))


@dataclass(frozen=True, slots=True)
class Rollback:
    """Points an alias back to where it was before its last move."""

    name: str
    alias: str

    def wire(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return _of("rollback", self.name, alias=checked_selector(self.alias, self.name))


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes one version, or the name with all its versions."""

    name: str
    version: int | None = None

    def wire(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return _of("delete", self.name, version=self.version)


@dataclass(frozen=True, slots=True)
class Publish:
    """Publishes what the store holds already, `source` such as staging/spam@4, as the next version of `name`."""

    name: str
    source: str
    alias: str | None = None

    def wire(self) -> dict[str, Any]:
        """The change as a JSON object."""
        alias = None if self.alias is None else checked_selector(self.alias, self.name)
        return _of("publish", self.name, source=checked_reference(self.source), alias=alias)


Change = SetAlias | DropAlias | Rollback | Delete | Publish


def _of(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "name": checked_name(name)} | {key: value for key, value in fields.items() if value is not None}


def target_fields(target: Target) -> dict[str, Any]:
    """`version` or `weights` as the wire has them; raises InvalidArgument for numbers that no alias can have."""
    if isinstance(target, int):
        return {"version": _positive("version", target)}
    if not 1 <= len(target) <= MOST_VERSIONS:
        raise InvalidArgument(f"An alias is spread over 1 to {MOST_VERSIONS} versions, not {len(target)}.")
    return {"weights": {str(_positive("version", version)): _positive("weight", weight) for version, weight in target.items()}}


def _positive(what: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidArgument(f"{number!r} is not a {what}: expected a whole number from 1 on.")
    return number


def changes_of(document: object) -> list[dict[str, Any]]:
    """The changes of a file's JSON document, {"changes": [{"type": ..., ...}, ...]}; what is in them the server judges."""
    changes = document.get("changes") if isinstance(document, dict) else None
    if not isinstance(changes, list) or not changes or not all(isinstance(change, dict) for change in changes):
        raise InvalidArgument('Expected {"changes": [{"type": "alias", "name": ..., ...}, ...]} with at least one change.')
    return changes
