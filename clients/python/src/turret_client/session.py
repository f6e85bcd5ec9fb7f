"""What the commands of `turret` share: the options --url, --api-key and --json, arguments of one meaning, how an error ends a command."""

import errno
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer

from turret_client.client import Turret
from turret_client.connection import DEFAULT_URL
from turret_client.errors import TurretError
from turret_client.render import printable

Url = Annotated[str | None, typer.Option("--url", metavar="URL", help=f"The server. [default: $TURRET_URL, else {DEFAULT_URL}]")]
ApiKey = Annotated[str | None, typer.Option("--api-key", metavar="KEY", help="Sent as a bearer token. [default: $TURRET_API_KEY]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

Name = Annotated[str, typer.Argument(metavar="NAME", help="An adapter: name or namespace/name.")]
Reference = Annotated[str, typer.Argument(metavar="NAME[@V]", help="An adapter, or one version of it: a number or alias.")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, such as prod.")]
Member = Annotated[
    list[str] | None,
    typer.Option("--member", metavar="MEMBER=REFERENCE", help="Of a fusion's folder: which adapter one of its members is; repeatable."),
]


@dataclass(frozen=True, slots=True)
class Session:
    """The common options of one run; given before the command or after it, where the latter wins."""

    url: str | None = None
    api_key: str | None = None
    as_json: bool = False

    def connect(self) -> Turret:
        """A client of the chosen server."""
        return Turret(self.url, self.api_key)


def fail(sentence: str) -> NoReturn:
    """Ends the command with exit code 1 and one sentence on stderr."""
    typer.echo(printable(" ".join(sentence.split())), err=True)
    raise typer.Exit(1)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a command of a function whose first parameter is a Session: adds the common options, and ends errors in a sentence."""

    @functools.wraps(function)
    def run(ctx: typer.Context, url: str | None, api_key: str | None, as_json: bool, **own: Any) -> None:
        outer = ctx.obj or Session()
        try:
            function(Session(url or outer.url, api_key or outer.api_key, as_json or outer.as_json), **own)
        except TurretError as error:
            fail(str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            fail(f"{error.strerror or error}: {error.filename}." if error.filename else f"{error.strerror or error}.")

    parameters = _parameters(function)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads the options from
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(function: Callable[..., None]) -> list[inspect.Parameter]:
    """The function's own parameters, its Session replaced by a typer.Context and the common options."""
    own = list(inspect.signature(function).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [
        inspect.Parameter("url", keyword, default=None, annotation=Url),
        inspect.Parameter("api_key", keyword, default=None, annotation=ApiKey),
        inspect.Parameter("as_json", keyword, default=False, annotation=AsJson),
    ]
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    return [context, *(parameter.replace(kind=keyword) for parameter in own), *common]
