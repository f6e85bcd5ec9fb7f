"""The log over HTTP: several changes as one atomic commit, and who changed what, when."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from adapter_store.catalog import Entry, Pointer
from adapter_store.changes import Collect, Commit
from adapter_store.names import LATEST, Reference, check_name, parse_reference
from adapter_store.wishes import AliasWish, DeleteWish, PublishWish, RollbackWish, UnaliasWish, Wish
from server.access.visibility import check_name as check_seen
from server.api.wire import json_response, note, services, terms
from server.core import Caller
from server.services import Services
from server.tasks.bounded import Body, FastList

router = APIRouter(prefix="/v1/changes", tags=["changes"])

MAX_CHANGES = 256

Name = Annotated[str, Field(min_length=1, max_length=129)]
Weights = Annotated[dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=1_000_000)]], Field(min_length=1, max_length=16)]


class Target(Body):
    """Where an alias shall point: to one version, or to several by weight."""

    version: int | None = Field(default=None, ge=1)
    weights: Weights | None = None

    @model_validator(mode="after")
    def _one(self) -> "Target":
        if (self.version is None) == (self.weights is None):
            raise ValueError("an alias points to either a 'version' or several by their 'weights'")
        return self

    @property
    def target(self) -> int | dict[int, int]:
        """The version, or the weights by version."""
        return self.version if self.version is not None else self.weights or {}


class SetAlias(Target):
    """An alias made or moved."""

    type: Literal["alias"]
    name: Name
    alias: str

    def wish(self) -> Wish:
        return AliasWish(check_name(self.name), self.alias, self.target)


class DropAlias(Body):
    """An alias removed."""

    type: Literal["unalias"]
    name: Name
    alias: str

    def wish(self) -> Wish:
        return UnaliasWish(check_name(self.name), self.alias)


class Rollback(Body):
    """An alias moved back to where it pointed before."""

    type: Literal["rollback"]
    name: Name
    alias: str

    def wish(self) -> Wish:
        return RollbackWish(check_name(self.name), self.alias)


class Delete(Body):
    """A version removed, or a name with all of them."""

    type: Literal["delete"]
    name: Name
    version: int | None = Field(default=None, ge=1)

    def wish(self) -> Wish:
        return DeleteWish(check_name(self.name), self.version)


class Promote(Body):
    """A package that is in the store published under another name; its bytes are not sent again."""

    type: Literal["publish"]
    name: Name
    source: str = Field(max_length=256)
    alias: str | None = None

    def wish(self) -> Wish:
        return PublishWish(check_name(self.name), parse_reference(self.source), self.alias)


Change = Annotated[SetAlias | DropAlias | Rollback | Delete | Promote, Field(discriminator="type")]


class ChangesRequest(Body):
    """Changes that take effect together or not at all, in their order."""

    changes: FastList[Change] = Field(min_length=1, max_length=MAX_CHANGES)


@router.post("", summary="Change several things at once")
async def change(request: Request, body: ChangesRequest) -> Response:
    """All changes in one commit: every request sees the catalogue before them or after them, nothing between."""
    app, caller = services(request), terms(request).caller
    wishes = [_pinned(app, one.wish(), caller) for one in body.changes]
    changed = await run_in_threadpool(app.store.change, wishes, by(request))
    note(request, changes=body.model_dump(mode="json", exclude_none=True)["changes"])
    await app.following.settle(changed.freed)
    if changed.commit is None:  # everything was so already
        return json_response({"commit": changed.catalog.n, "time": None, "by": None, "changes": []})
    return json_response(commit_shown(changed.commit, caller.sees))


@router.get("", summary="Who changed what, when")
async def history(
    request: Request,
    name: Annotated[str | None, Query(max_length=129)] = None,
    before: Annotated[int | None, Query(ge=1)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Commits, newest first, of one name or of all; `before` is the `next_before` of the page before."""
    sees = terms(request).caller.sees
    if name is not None and not sees(check_name(name)):
        name = ""  # a name that the key may not know of has no history, as an unknown one
    page = await run_in_threadpool(services(request).store.history, name, before, limit)
    commits = [seen for commit in page.commits if (seen := commit_shown(commit, sees, name))["changes"]]
    return json_response({"commits": commits, "next_before": page.next_before})


def commit_shown(commit: Commit, sees: Any, name: str | None = None) -> dict[str, Any]:
    """A commit as the wire shows it: the changes of names that the caller may know of."""
    changes = [
        change.model_dump(mode="json", exclude={"summary"}, exclude_none=True)
        for change in commit.changes
        if not isinstance(change, Collect) and sees(change.name) and name in (None, change.name)
    ]
    return {"commit": commit.n, "time": commit.time, "by": commit.by, "changes": changes}


def by(request: Request) -> str:
    """Who makes a change, for the log."""
    return terms(request).caller.name


def aliases_of(entry: Entry) -> dict[str, int | dict[str, int]]:
    """Where the aliases of a name point: to a version, or to several by weight."""
    return {LATEST: entry.latest.version, **{alias: _pointed(pointer) for alias, pointer in entry.aliases.items()}}


def _pointed(pointer: Pointer) -> int | dict[str, int]:
    return pointer.version if pointer.version is not None else {str(version): weight for version, weight in pointer.weights.items()}


def _pinned(app: Services, wish: Wish, caller: Caller) -> Wish:
    """A wish with its source pinned and checked. Raises NotFound where it names what the caller may not know of."""
    names = [wish.name, wish.source.name] if isinstance(wish, PublishWish) else [wish.name]
    for name in names:
        check_seen(caller, name)
    if not isinstance(wish, PublishWish):
        return wish
    record = app.store.resolve(wish.source)
    app.access.trust.check(wish.name, record.digest, record.signature)
    return PublishWish(wish.name, Reference(record.name, record.digest), wish.alias)
