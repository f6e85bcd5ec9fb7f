"""What the server tells of what is published, as typed values: adapters, versions, aliases, commits, and where packages are resident."""

from datetime import datetime
from pathlib import Path

from pydantic import Field, JsonValue

from turret_client.results import Answer

# Alias -> version, or version -> weight where it is spread over several.
Aliases = dict[str, int | dict[int, int]]


class Adapter(Answer):
    """One published adapter, at its newest version. `size` in bytes, `parameters` a count of numbers."""

    name: str
    version: int
    digest: str
    task: str | None = None
    head: JsonValue = None
    methods: list[str] = Field(default_factory=list)
    size: int | None = None
    parameters: int | None = None
    created: datetime | None = None
    aliases: Aliases = Field(default_factory=dict)
    license: str | None = None


class Published(Adapter):
    """What a push made, or found: `is_new` is False if the store already held exactly these bytes under the name."""

    warnings: list[str] = Field(default_factory=list)
    is_new: bool = True


class AdapterPage(Answer):
    """One page of the listing."""

    adapters: tuple[Adapter, ...]
    next_cursor: str | None = None


class Version(Answer):
    """One version of an adapter. `size` in bytes; `by` who published it, `signature` who signed it, None for nobody."""

    version: int
    digest: str
    size: int | None = None
    created: datetime | None = None
    by: str | None = None
    signature: str | None = None


class AdapterDetails(Answer):
    """All that the server tells of one adapter."""

    name: str
    aliases: Aliases = Field(default_factory=dict)
    versions: tuple[Version, ...] = ()
    manifest: dict[str, JsonValue] = Field(default_factory=dict)
    resident: dict[str, JsonValue] = Field(default_factory=dict)
    counts: dict[str, JsonValue] = Field(default_factory=dict)


class AliasMoved(Answer):
    """An adapter's aliases after one was set, removed or rolled back."""

    name: str
    aliases: Aliases = Field(default_factory=dict)


class Deleted(Answer):
    """What was deleted."""

    name: str
    deleted: list[int]


class Pulled(Answer):
    """A package that was downloaded; its bytes were checked against `digest`. `size` in bytes."""

    file: Path
    digest: str
    size: int


class Resident(Answer):
    """Where a package is after it was loaded or unloaded: `resident` has device, host and pinned."""

    name: str
    version: int | None = None
    digest: str | None = None
    resident: dict[str, JsonValue] = Field(default_factory=dict)


class Changed(Answer):
    """One change of a commit. `type` is publish, alias, unalias, rollback, delete or collect; the other fields are those that it has."""

    type: str
    name: str | None = None
    version: int | None = None
    digest: str | None = None
    alias: str | None = None
    weights: dict[int, int] | None = None
    signature: str | None = None
    digests: tuple[str, ...] = ()


class Commit(Answer):
    """Changes that happened together: the `commit`'s number, when, and by whose key."""

    commit: int
    time: datetime | None = None
    by: str | None = None
    changes: tuple[Changed, ...] = ()


class CommitPage(Answer):
    """One page of the history, newest first."""

    commits: tuple[Commit, ...]
    next_before: int | None = None
