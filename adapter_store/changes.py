"""What a log of commits consists of, as it is written: changes to names, aliases and blobs, several of them in one commit.

Knows how a commit reads and what one change may say on its own; whether the state of a catalogue allows it is catalog.py's.
Commits of earlier versions, which had no `id`, no `by`, no weights, no signatures, read as they are.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from adapter_store.methods import Frozen
from adapter_store.names import DIGEST

MAX_WEIGHTS = 16
MAX_WEIGHT = 1_000_000
MAX_BY = 200

Name = Annotated[str, Field(min_length=1, max_length=129)]
Alias = Annotated[str, Field(min_length=1, max_length=64)]
Digest = Annotated[str, Field(pattern=f"^{DIGEST.pattern}$")]
Version = Annotated[int, Field(ge=1)]
Weights = Annotated[dict[Version, Annotated[int, Field(ge=1, le=MAX_WEIGHT)]], Field(min_length=1, max_length=MAX_WEIGHTS)]


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
    """A new version of a name. `signature` is "signer:base64" where the package came signed."""

    type: Literal["publish"] = "publish"
    name: Name
    version: Version
    digest: Digest
    summary: Summary
    signature: str | None = None


class SetAlias(Frozen):
    """An alias made or moved: to one version, or to several by weight. A rollback is a move back and reads like any other."""

    type: Literal["alias"] = "alias"
    name: Name
    alias: Alias
    version: Version | None = None
    weights: Weights | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.version is None) == (self.weights is None):
            raise ValueError("an alias points to a version or to weights, and to exactly one of the two")
        return self

    @property
    def target(self) -> dict[int, int]:
        """Weights by version; a single version has weight 1."""
        return pointed({self.version: 1} if self.version is not None else self.weights or {})


class DropAlias(Frozen):
    """An alias removed."""

    type: Literal["unalias"] = "unalias"
    name: Name
    alias: Alias


class Delete(Frozen):
    """One version removed, or the whole name with its aliases where `version` is None."""

    type: Literal["delete"] = "delete"
    name: Name
    version: int | None = None


class Collect(Frozen):
    """The present generation of blobs that nothing refers to ends: their keys are deleted after this commit and never written again."""

    type: Literal["collect"] = "collect"
    digests: tuple[Digest, ...] = Field(min_length=1)


Change = Annotated[Publish | SetAlias | DropAlias | Delete | Collect, Field(discriminator="type")]


class Commit(Frozen):
    """One entry of the log: changes that take effect together.

    `n` counts from 1; `time` is ISO 8601, UTC; `by` is who made it, "" where that is not known. `id` is random: a writer that is
    not told whether its commit was created finds out by reading it.
    """

    format: Literal["turret-log/1"] = "turret-log/1"
    n: int = Field(ge=1)
    time: str
    by: str = Field(default="", max_length=MAX_BY)
    id: str = Field(default="", max_length=64)
    changes: tuple[Change, ...] = Field(min_length=1)

    def concerns(self, name: str) -> bool:
        """Whether a change of it is to `name`. Collections are to no name."""
        return any(getattr(change, "name", None) == name for change in self.changes)


def pointed(weights: Mapping[int, int]) -> dict[int, int]:
    """Weights in ascending order of versions; a single version has weight 1, so that equal pointers are equal."""
    return {version: 1 if len(weights) == 1 else weights[version] for version in sorted(weights)}
