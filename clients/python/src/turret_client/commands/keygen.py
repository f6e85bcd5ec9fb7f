"""`turret keygen`: API keys and signers, for a server's --api-keys and --signers files. `keys.py` and `signing.py` do the work."""

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from turret_client.keys import Grant, Scope, Section, add_block, checked_key_name, key_block, mint, signer_block
from turret_client.render import print_json, print_line
from turret_client.session import Session, command
from turret_client.signing import new_signing_key


@command
def keygen(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The API key's name, as the server's file and logs have it.")] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", metavar="SCOPE", help="What it may do: predict, publish or admin; repeatable.")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--names", metavar="PATTERN", help="Which adapters it knows: spam, 'acme/*' or '*'; repeatable. [default: *]"),
    ] = None,
    rpm: Annotated[int | None, typer.Option("--rpm", metavar="N", min=1, help="Requests in a minute.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", metavar="N", min=1, help="Tokens in a minute.")] = None,
    weight: Annotated[float | None, typer.Option("--weight", metavar="W", help="Share of the engine, beside other keys' 1.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="TOML", help="The server's file, which the block is added to.")] = None,
    signer: Annotated[str | None, typer.Option("--signer", metavar="NAME", help="Instead: a key pair to sign packages with.")] = None,
    key_file: Annotated[Path | None, typer.Option("--key-file", metavar="PEM", help="With --signer: where its private key goes.")] = None,
) -> None:
    """Make an API key for a server's --api-keys file, or with --signer a key pair for its --signers file.

    The API key is printed on stdout, once; the file holds only its hash. A signer's private key is written to --key-file,
    readable by its owner only. Without --file the block for the server's file is printed: on stderr beside an API key, on
    stdout for a signer. No server is asked, and none needs a restart.
    """
    of_keys = (name, scope, names, rpm, tpm, weight)
    if signer is None:
        if name is None or not scope or key_file is not None:
            raise typer.BadParameter("an API key needs NAME and --scope; a signer --signer NAME and --key-file PEM")
        return _new_api_key(session, name, Grant(scope, names or ["*"], rpm, tpm, weight), file)
    if key_file is None or any(option is not None for option in of_keys):
        raise typer.BadParameter("a signer needs --key-file PEM, and nothing of an API key", param_hint="--signer")
    return _new_signer(session, signer, key_file, file)


def _new_api_key(session: Session, name: str, grant: Grant, file: Path | None) -> None:
    key = mint(name)
    block = key_block(key, grant)
    _add(file, "keys", name, block)
    if session.as_json:
        return print_json({"name": name, "key": key, "sha256": hashlib.sha256(key.encode()).hexdigest(), "toml": block})
    if file is None:
        typer.echo(block, err=True, nl=False)
    return print_line(key)


def _new_signer(session: Session, signer: str, key_file: Path, file: Path | None) -> None:
    checked_key_name(signer)
    public_key = new_signing_key(key_file)
    block = signer_block(signer, public_key)
    try:
        _add(file, "signers", signer, block)
    except BaseException:
        key_file.unlink()  # a key that no server will know
        raise
    if session.as_json:
        return print_json({"signer": signer, "public_key": public_key, "key_file": str(key_file), "toml": block})
    if file is None:
        return typer.echo(block, nl=False)
    return print_line(signer, public_key, key_file)


def _add(file: Path | None, section: Section, name: str, block: str) -> None:
    if file is not None:
        add_block(file, section, name, block)
