"""`turret predict`: what it reads (models, texts, parameters) and how it shows the rows that come back."""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import typer

from turret_client.errors import InvalidArgument, RowFailed, UnexpectedResponse
from turret_client.render import interactive, output_rows, plain, print_table, printable
from turret_client.results import Prediction, Predictions

BATCH = 32  # texts in one request


def texts_of(given: list[str] | None) -> Iterator[str]:
    """The texts of the arguments, or standard input's lines where they say so; a usage error if there is none."""
    if not given and interactive():
        raise typer.BadParameter("give a text, or '-' and texts on standard input", param_hint="TEXT")
    source = itertools.chain.from_iterable(_lines() if text == "-" else [text] for text in given or ["-"])
    first = next(source, None)
    if first is None:
        raise typer.BadParameter("standard input has no text", param_hint="TEXT")
    return itertools.chain([first], source)


def _lines() -> Iterator[str]:
    """The lines of standard input that hold a text."""
    try:
        for line in sys.stdin:
            if (text := line.strip("\r\n")) and not text.isspace():
                yield text
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"Standard input is not {error.encoding} text.") from None


def parameters_of(given: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs as parameters; a value that is not JSON is text."""
    parameters: dict[str, Any] = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"'{pair}' is not KEY=VALUE", param_hint="--parameter")
        try:
            parameters[key] = json.loads(value)
        except ValueError:
            parameters[key] = value
    return parameters


def members_of(given: list[str] | None) -> dict[str, str]:
    """MEMBER=REFERENCE pairs; a reference holds no equals sign, a member's name may."""
    members: dict[str, str] = {}
    for pair in given or []:
        member, equals, reference = pair.rpartition("=")
        if not (member and equals and reference):
            raise typer.BadParameter(f"'{pair}' is not MEMBER=REFERENCE", param_hint="--member")
        members[member] = reference
    return members


def split_models(text: str) -> list[str]:
    """The model strings of a list with commas; those inside brackets belong to a composition. A usage error if there is none."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    names = [part.strip() for part in parts if part.strip()]
    if not names:
        raise typer.BadParameter("give a model's name", param_hint="MODEL")
    return names


def batches(items: Iterable[str], count: int) -> Iterator[list[str]]:
    """The items in lists of `count`, the last one shorter."""
    source = iter(items)
    while batch := list(itertools.islice(source, count)):
        yield batch


class Printer:
    """Prints predictions: into a pipe as they arrive, on a terminal in the end, as one table for each kind of output."""

    def __init__(self, *, models: int, quiet: bool) -> None:
        self.failed = False
        self.document: dict[str, Any] = {"results": []}
        self._models = models
        self._quiet = quiet
        self._texts = 0
        self._told: set[str] = set()
        self._tables: dict[tuple[str, ...], list[tuple[object, ...]]] = {}

    def add(self, texts: list[str], answer: Predictions) -> None:
        """Takes the answer for these texts, which has for each text in turn a row of every model."""
        if len(answer) != len(texts) * self._models:
            raise UnexpectedResponse(f"The server answered {len(answer)} rows for {len(texts)} texts and {self._models} models.")
        if self._quiet:
            document = plain(answer)
            self.document["results"] += document.pop("results")
            self.document |= document
        for index, row in enumerate(answer):
            place = index // self._models
            self._add_row(texts[place], self._texts + place + 1, row)
        self._texts += len(texts)

    def flush(self) -> None:
        """Prints the tables that wait."""
        for columns, rows in self._tables.items():
            print_table(columns, rows)
        self._tables = {}

    def _add_row(self, text: str, number: int, row: Prediction) -> None:
        try:
            columns, rows = output_rows(row)
        except RowFailed as error:
            self._tell(f"Text {number}, {row.model}: {error}", str(error))
            return
        if not self._quiet:
            head: tuple[object, ...] = (row.model, text) if self._models > 1 else (text,)
            names = ("model", "text") if self._models > 1 else ("text",)
            self._tables.setdefault(names + columns, []).extend(head + cells for cells in rows)
            if not sys.stdout.isatty():
                self.flush()

    def _tell(self, sentence: str, reason: str) -> None:
        """Tells an error on stderr; the same reason only once."""
        self.failed = True
        if reason not in self._told:
            typer.echo(printable(sentence), err=True)
        self._told.add(reason)
