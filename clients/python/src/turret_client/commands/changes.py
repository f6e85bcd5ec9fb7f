"""`turret alias`, `rollback`, `promote`, `apply` and `history`: what is called prod, and who changed it when."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from turret_client.catalogue import AliasMoved, Changed, Commit
from turret_client.changes import Publish, Target, changes_of
from turret_client.errors import InvalidArgument
from turret_client.render import facts, moment, plain, pointer, pointers, print_json, print_line, print_table
from turret_client.session import Alias, Name, Session, command


@command
def alias(
    session: Session,
    name: Name,
    alias: Alias,
    versions: Annotated[
        list[str] | None, typer.Argument(metavar="VERSION[=WEIGHT]", help="A version; or several, each with its weight: 3=90 4=10.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
) -> None:
    """Point an alias of NAME to a version, or spread it over several by weight.

    Requests of one sticky key (`turret predict --sticky-key`), else those of one API key, all get the same version.
    """
    if remove == bool(versions):
        raise typer.BadParameter("give a version, or versions as 3=90 4=10, or --remove", param_hint="VERSION[=WEIGHT]")
    target = None if remove else target_of(versions or [])
    with session.connect() as server:
        moved = server.drop_alias(name, alias) if target is None else server.set_alias(name, alias, target)
    _show_aliases(session, moved)


@command
def rollback(session: Session, name: Name, alias: Alias) -> None:
    """Point an alias of NAME back to where it was before its last move; twice is forward again."""
    with session.connect() as server:
        _show_aliases(session, server.rollback(name, alias))


@command
def promote(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What is published already, such as staging/spam@4.")],
    name: Name,
    alias: Annotated[str | None, typer.Option("--alias", metavar="A", help="Also point this alias to the new version.")] = None,
) -> None:
    """Publish what the store holds under another name as the next version of NAME, in one step."""
    with session.connect() as server:
        _show_commit(session, server.change([Publish(name, source, alias)]))


@command
def apply(session: Session, file: Annotated[str, typer.Argument(metavar="FILE", help="A JSON file; '-': standard input.")]) -> None:
    """Make the changes of FILE as one commit: all of them, or none.

    FILE holds {"changes": [...]}, of which each is one of

    \b
    {"type": "alias", "name": "spam", "alias": "prod", "version": 3}      or "weights": {"3": 90, "4": 10}
    {"type": "unalias", "name": "spam", "alias": "prod"}
    {"type": "rollback", "name": "spam", "alias": "prod"}
    {"type": "publish", "name": "spam", "source": "staging/spam@4"}       and maybe "alias": "prod"
    {"type": "delete", "name": "spam", "version": 2}                      without a version: the whole name
    """
    changes = changes_of(_document(file))
    with session.connect() as server:
        _show_commit(session, server.change(changes))


@command
def history(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only what concerns this adapter.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most N commits.")] = 20,
) -> None:
    """Show who changed what and when, newest first."""
    with session.connect() as server:
        commits = list(server.history(name, limit))
    if session.as_json:
        return print_json({"commits": [plain(commit) for commit in commits]})
    rows = [(commit.commit, moment(commit.time), commit.by, sentence(change)) for commit in commits for change in commit.changes]
    return print_table(("commit", "when", "by", "change"), rows)


def target_of(given: list[str]) -> Target:
    """A version, or VERSION=WEIGHT pairs, as where an alias points."""
    if len(given) == 1 and given[0].isdecimal():
        return int(given[0])
    weights: dict[int, int] = {}
    for pair in given:
        version, equals, weight = pair.partition("=")
        if not (equals and version.isdecimal() and weight.isdecimal()):
            raise typer.BadParameter(f"'{pair}' is not VERSION=WEIGHT; give one version alone, or several as 3=90 4=10")
        if int(version) in weights:
            raise typer.BadParameter(f"version {version} has two weights")
        weights[int(version)] = int(weight)
    return weights


def sentence(change: Changed) -> str:
    """A change of a commit in one line: alias spam prod=3:90,4:10."""
    target = change.weights or change.version
    moved = change.alias if change.alias is None or target is None else pointer(change.alias, target)
    match change.type:
        case "alias" | "unalias" | "rollback":
            words = [change.type, change.name, moved]
        case "publish" | "delete" if change.version is not None:
            signed = f"signed by {change.signature.partition(':')[0]}" if change.signature else None
            words = [change.type, f"{change.name}@{change.version}", change.digest, signed]
        case "collect":
            words = [change.type, f"{len(change.digests)} packages"]
        case _:
            words = [change.type, change.name, facts(change.model_extra or {})]
    return " ".join(word for word in words if word)


def _show_aliases(session: Session, moved: AliasMoved) -> None:
    if session.as_json:
        return print_json(plain(moved))
    return print_line(moved.name, pointers(moved.aliases))


def _show_commit(session: Session, commit: Commit) -> None:
    if session.as_json:
        return print_json(plain(commit))
    if not commit.changes:
        print_line(commit.commit, "nothing to change")
    for change in commit.changes:
        print_line(commit.commit, sentence(change))
    return None


def _document(file: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if file == "-" else Path(file).read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{'Standard input' if file == '-' else file} is not JSON: {error}.") from None
