"""The `turret` command. Results go to stdout, sentences and progress bars to stderr.

Exit codes: 0 done; 1 refused or failed, with one sentence on stderr; 2 wrong usage.
"""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from turret_client import offline
from turret_client.predicting import BATCH, Printer, batches, members_of, parameters_of, split_models, texts_of
from turret_client.protocol import OutputKind, split_reference
from turret_client.render import (
    interactive,
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
from turret_client.session import ApiKey, AsJson, Session, Url, command
from turret_client.version import __version__

app = typer.Typer(name="turret", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Name = Annotated[str, typer.Argument(metavar="NAME", help="An adapter: name or namespace/name.")]
Member = Annotated[
    list[str] | None,
    typer.Option("--member", metavar="MEMBER=REFERENCE", help="Of a fusion's folder: which adapter one of its members is; repeatable."),
]
Reference = Annotated[str, typer.Argument(metavar="NAME[@V]", help="An adapter, or one version of it: a number or alias.")]


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


@app.command()
@command
def push(
    session: Session,
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A .safetensors package, or a folder of AdapterHub or PEFT.")],
    alias: Annotated[str | None, typer.Option("--alias", metavar="A", help="Also point this alias to the new version.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Refuse if the name exists already.")] = False,
    member: Member = None,
) -> None:
    """Publish an adapter as the next version of NAME.

    Of a folder only the *.json, *.safetensors and README.md at its top level are sent, and of a setup (adapter_setup.json)
    those of its folders: it becomes several adapters, NAME.MEMBER for each, and NAME for the whole. Pickled weights (*.bin,
    *.pt) are never sent: run `turret convert` first.
    """
    members = members_of(member)
    with session.connect() as server, transfer(f"pushing {name}") as progress:
        published = server.push(name, path, alias=alias, if_none_match=new, progress=progress, members=members)
    if session.as_json:
        return print_json(plain(published))
    for warning in published.warnings:
        typer.echo(printable(f"Warning: {warning}"), err=True)
    state = "published" if published.is_new else "already published, nothing changed"
    print_line(f"{published.name}@{published.version}", published.digest, state)
    return None


@app.command()
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


@app.command()
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


@app.command()
@command
def show(session: Session, name: Name) -> None:
    """Show an adapter: its manifest, versions, aliases and use."""
    with session.connect() as server:
        details = server.show(name)
    if session.as_json:
        return print_json(plain(details))
    print_pairs(
        {"name": details.name, "aliases": pointers(details.aliases)}
        | _manifest_lines(details.manifest)
        | {"resident": _facts(details.resident), "counts": _facts(details.counts)}
    )
    print()
    rows = [(version.version, version.digest, size(version.size), moment(version.created)) for version in details.versions]
    return print_table(("version", "digest", "size", "created"), rows)


@app.command()
@command
def predict(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, such as spam, spam@3 or 'stack(a, b)'; several with commas.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts; '-' or none: standard input.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, metavar="N", help="Only the N best labels.")] = None,
    output: Annotated[OutputKind, typer.Option("--output", help="Labels, or numbers: raw scores, hidden states, one vector.")] = "decoded",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="KEY=VALUE", help="A further parameter; VALUE is JSON or text.")
    ] = None,
) -> None:
    """Run a model on texts: arguments, or standard input with one text per line (empty lines are skipped).

    A text that fails alone is told on stderr and does not keep back the others; the exit code is then 1.
    """
    lines = texts_of(texts)
    parameters = parameters_of(parameter) | ({} if top_k is None else {"top_k": top_k})
    names = split_models(model)
    printer = Printer(models=len(names), quiet=session.as_json)
    with session.connect() as server:
        for batch in batches(lines, BATCH):
            answer = server.predict(names if len(names) > 1 else names[0], batch, parameters=parameters, output=output)
            printer.add(batch, answer)
    if session.as_json:
        print_json(printer.document)
    printer.flush()
    if printer.failed:
        raise typer.Exit(1)


@app.command()
@command
def alias(
    session: Session,
    name: Name,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, such as prod.")],
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version that it shall point to.")],
) -> None:
    """Point an alias of NAME to a version."""
    with session.connect() as server:
        moved = server.set_alias(name, alias, version)
    if session.as_json:
        return print_json(plain(moved))
    print_line(moved.name, pointers(moved.aliases))
    return None


@app.command()
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


@app.command()
@command
def inspect(session: Session, file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors package.")]) -> None:
    """Check a package file and show what it holds. Offline; needs turret-server installed."""
    package = offline.inspect(file)
    if session.as_json:
        return print_json({"file": str(file)} | dataclasses.asdict(package))
    return print_pairs({"file": file} | _package_lines(package))


@app.command()
@command
def convert(
    session: Session,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of AdapterHub or PEFT; its weights may be pickles.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The package to write.")],
    backbone: Annotated[
        Path | None, typer.Option("--backbone", metavar="PATH", help="The model's folder or config.json, where the adapter does not tell.")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", metavar="ID", help="The license to note, such as MIT.")] = None,
    card: Annotated[Path | None, typer.Option("--card", metavar="FILE", help="A text about the adapter to put into it.")] = None,
    member: Member = None,
) -> None:
    """Write an adapter's folder as one package file. Offline; needs turret-server installed.

    The only place where pickled weights are opened, and then as plain tensors only. A setup, and a fusion whose members are
    not named with digests (--member mnli=acme/mnli@sha256:...), is written as a folder without pickles, ready to be pushed.
    """
    members = members_of(member)
    if offline.several(folder, members):
        written = offline.unpickle(folder, file)
        return print_json({"folder": str(file), "files": written}) if session.as_json else print_line(file, f"{len(written)} files")
    converted = offline.convert(folder, file, backbone, license_, card, members)
    for warning in converted.warnings:
        typer.echo(printable(f"Warning: {warning}"), err=True)
    if session.as_json:
        package = dataclasses.asdict(converted.package)
        return print_json({"file": str(file), "report": converted.report, "warnings": converted.warnings} | package)
    print_pairs({"file": file} | _package_lines(converted.package))
    for line in converted.report:
        print_line(line)
    typer.echo(printable(f"Next: turret push {converted.package.manifest.get('name') or 'NAME'} {shlex.quote(str(file))}"), err=True)
    return None


# What the commands show.


def _facts(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value not in (None, "", [], {}))


def _package_lines(package: offline.Inspected) -> dict[str, object]:
    numbers = {"digest": package.digest, "size": size(package.size), "parameters": package.parameters, "task": package.task}
    return numbers | _manifest_lines(package.manifest)


def _manifest_lines(manifest: dict[str, Any]) -> dict[str, object]:
    """A manifest's fields, one line each: methods and head by their settings, the backbone by its dimensions."""
    methods = manifest.get("methods") or {}
    lines: dict[str, object] = {"made as": manifest.get("name"), "license": manifest.get("license")}
    lines |= {f"method {part}": _facts(settings) for part, settings in methods.items()}
    lines |= {"composition": manifest.get("composition"), "head": _facts(manifest.get("head") or {})}
    lines |= {"backbone": _facts(manifest.get("backbone") or {}), "source": _facts(manifest.get("source") or {})}
    return lines | {"card": (manifest.get("card") or "").strip()}
