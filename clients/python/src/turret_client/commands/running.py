"""`turret predict`, `load` and `unload`: what a server does with what is published. `predicting.py` reads the texts and shows the rows."""

from typing import Annotated

import typer

from turret_client.catalogue import Resident
from turret_client.predicting import BATCH, Printer, batches, parameters_of, split_models, texts_of
from turret_client.protocol import Cold, OutputKind
from turret_client.render import facts, plain, print_json, print_line
from turret_client.session import Name, Reference, Session, command


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
    sticky_key: Annotated[
        str | None, typer.Option("--sticky-key", metavar="KEY", help="Of weighted aliases: texts of one key get one version.")
    ] = None,
    cold: Annotated[
        Cold | None, typer.Option("--cold", help="Where a model is not on the device yet: wait, or be refused. [default: wait]")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", metavar="SECONDS", help="Of each request: the server answers by then, or not at all.")
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
            answer = server.predict(
                names if len(names) > 1 else names[0],
                batch,
                parameters=parameters,
                output=output,
                sticky_key=sticky_key,
                cold=cold,
                deadline=deadline,
            )
            printer.add(batch, answer)
    if session.as_json:
        print_json(printer.document)
    printer.flush()
    if printer.failed:
        raise typer.Exit(1)


@command
def load(
    session: Session,
    reference: Reference,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it on the device, whatever else is asked for.")] = False,
) -> None:
    """Bring an adapter to the device before it is asked for."""
    with session.connect() as server:
        _show(session, server.load(reference, pin=pin))


@command
def unload(session: Session, name: Name) -> None:
    """Free the device of an adapter, pinned or not; it is loaded again when it is asked for."""
    with session.connect() as server:
        _show(session, server.unload(name))


def _show(session: Session, resident: Resident) -> None:
    if session.as_json:
        return print_json(plain(resident))
    what = resident.name if resident.version is None else f"{resident.name}@{resident.version}"
    return print_line(what, resident.digest, facts(resident.resident))
