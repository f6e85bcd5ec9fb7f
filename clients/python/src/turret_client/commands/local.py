"""`turret inspect` and `convert`: packages and folders on this machine, without a server. `offline.py` does the work."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from turret_client import offline
from turret_client.predicting import members_of
from turret_client.render import manifest_pairs, print_json, print_line, print_pairs, printable, size
from turret_client.session import Member, Session, command


@command
def inspect(session: Session, file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors package.")]) -> None:
    """Check a package file and show what it holds. Offline; needs turret-server installed."""
    package = offline.inspect(file)
    if session.as_json:
        return print_json({"file": str(file)} | dataclasses.asdict(package))
    return print_pairs({"file": file} | _package_pairs(package))


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
    print_pairs({"file": file} | _package_pairs(converted.package))
    for line in converted.report:
        print_line(line)
    typer.echo(printable(f"Next: turret push {converted.package.manifest.get('name') or 'NAME'} {shlex.quote(str(file))}"), err=True)
    return None


def _package_pairs(package: offline.Inspected) -> dict[str, object]:
    numbers = {"digest": package.digest, "size": size(package.size), "parameters": package.parameters, "task": package.task}
    return numbers | manifest_pairs(package.manifest)
