"""The `turret` command, put together of the functions in `commands/`. Results go to stdout, sentences and progress bars to stderr.

Exit codes: 0 done; 1 refused or failed, with one sentence on stderr; 2 wrong usage.
"""

from typing import Annotated

import typer

from turret_client.commands.changes import alias, apply, history, promote, rollback
from turret_client.commands.keygen import keygen
from turret_client.commands.local import convert, inspect
from turret_client.commands.packages import ls, pull, push, rm, show
from turret_client.commands.running import load, predict, unload
from turret_client.session import ApiKey, AsJson, Session, Url
from turret_client.version import __version__

# As `turret --help` lists them.
COMMANDS = (push, pull, ls, show, predict, alias, rollback, promote, apply, history, rm, load, unload, keygen, inspect, convert)

app = typer.Typer(name="turret", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for each in COMMANDS:
    app.command()(each)


def main() -> None:
    """The console script."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"turret {__version__}")
        raise typer.Exit


@app.callback()
def turret(
    ctx: typer.Context,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Publish small adapters to a Turret server and run them.

    The options --url, --api-key and --json may stand before or after the command.
    """
    ctx.obj = Session(url, api_key, as_json)
