"""`turret push`, `pull`, `ls`, `show` and `rm`: packages in a server's store."""

from pathlib import Path
from typing import Annotated

import typer

from turret_client.names import split_reference
from turret_client.predicting import members_of
from turret_client.render import (
    facts,
    interactive,
    manifest_pairs,
    moment,
    plain,
    pointers,
    print_json,
    print_line,
    print_pairs,
    print_table,
    printable,
    size,
    transfer,
)
from turret_client.session import Member, Name, Reference, Session, command
from turret_client.signing import sign_package


@command
def push(
    session: Session,
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A .safetensors package, or a folder of AdapterHub or PEFT.")],
    alias: Annotated[str | None, typer.Option("--alias", metavar="A", help="Also point this alias to the new version.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Refuse if the name exists already.")] = False,
    member: Member = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="Sign the package with this private key (PEM, of `turret keygen`).")
    ] = None,
    signer: Annotated[str | None, typer.Option("--signer", metavar="NAME", help="Whose key it is, as the server knows it.")] = None,
) -> None:
    """Publish an adapter as the next version of NAME.

    Of a folder only the *.json, *.safetensors and README.md at its top level are sent, and of a setup (adapter_setup.json)
    those of its folders: it becomes several adapters, NAME.MEMBER for each, and NAME for the whole. Pickled weights (*.bin,
    *.pt) are never sent: run `turret convert` first.
    """
    members = members_of(member)
    if (sign is None) != (signer is None):
        raise typer.BadParameter("--sign KEY and --signer NAME go together", param_hint="--sign")
    signature = sign_package(path, sign, signer) if sign and signer else None
    with session.connect() as server, transfer(f"pushing {name}") as progress:
        published = server.push(name, path, alias=alias, if_none_match=new, progress=progress, members=members, signature=signature)
    if session.as_json:
        return print_json(plain(published))
    for warning in published.warnings:
        typer.echo(printable(f"Warning: {warning}"), err=True)
    state = "published" if published.is_new else "already published, nothing changed"
    print_line(f"{published.name}@{published.version}", published.digest, state)
    return None


@command
def pull(
    session: Session, reference: Reference, file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the package.")]
) -> None:
    """Download a package to FILE, checked against its digest; FILE is written whole or not at all."""
    with session.connect() as server, transfer(f"pulling {reference}") as progress:
        pulled = server.pull(reference, file, progress)
    if session.as_json:
        return print_json(plain(pulled))
    print_line(pulled.file, pulled.digest, size(pulled.size))
    return None


@command
def ls(
    session: Session,
    task: Annotated[str | None, typer.Option("--task", help="Only of this task, such as text-classification.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Only of this method, such as bottleneck.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Only names of this namespace.")] = None,
) -> None:
    """List the published adapters."""
    with session.connect() as server:
        adapters = list(server.list(task=task, method=method, namespace=namespace))
    if session.as_json:
        return print_json({"adapters": [plain(adapter) for adapter in adapters]})
    columns = ("name", "version", "task", "methods", "size", "parameters", "aliases", "created")
    rows = [
        (a.name, a.version, a.task, ",".join(a.methods), size(a.size), a.parameters, pointers(a.aliases), moment(a.created))
        for a in adapters
    ]
    return print_table(columns, rows)


@command
def show(session: Session, name: Name) -> None:
    """Show an adapter: its manifest, versions, aliases and use."""
    with session.connect() as server:
        details = server.show(name)
    if session.as_json:
        return print_json(plain(details))
    print_pairs(
        {"name": details.name, "aliases": pointers(details.aliases)}
        | manifest_pairs(details.manifest)
        | {"resident": facts(details.resident), "counts": facts(details.counts)}
    )
    print()
    rows = [(v.version, v.digest, size(v.size), moment(v.created), v.by, v.signature) for v in details.versions]
    return print_table(("version", "digest", "size", "created", "by", "signed by"), rows)


@command
def rm(
    session: Session,
    reference: Annotated[str, typer.Argument(metavar="NAME[@V]", help="An adapter, or one version of it: its number.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete one version (NAME@V), or NAME with all its versions."""
    name, version = split_reference(reference)
    if version is not None and not version.isdecimal():
        raise typer.BadParameter(f"'{version}' is not a version's number; only a number is deleted, never what an alias points to")
    what = f"version {version} of {name}" if version else f"{name} with all its versions"
    if not yes:
        if not interactive():
            raise typer.BadParameter(f"nobody can be asked here whether to delete {what}; say --yes", param_hint="--yes")
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with session.connect() as server:
        deleted = server.delete(name, int(version) if version else None)
    if session.as_json:
        return print_json(plain(deleted))
    for number in deleted.deleted:
        print_line(f"{deleted.name}@{number}", "deleted")
    return None
