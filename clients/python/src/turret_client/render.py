"""What `turret` prints. On a terminal tables for people; into a pipe tab-separated lines without a heading, for cut and awk.

All text from the server passes `printable`, so that no label or card can play with the terminal.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from turret_client.results import Array, Entity, Label, Prediction
from turret_client.upload import Progress as Report

# Control characters, and those that turn the direction of the text around them.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
WIDEST_CELL = 60  # characters, on a terminal
GAP = 2  # spaces between two columns
NARROWEST_CELL = 12  # characters that are left of a cut one
WHOLE = frozenset(("name", "version", "model", "digest", "label", "score", "size", "parameters", "created", "commit", "when"))  # never cut


def printable(text: str) -> str:
    """`text` with its control characters shown as escapes."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def interactive() -> bool:
    """Whether a person can be asked: standard input is a terminal."""
    return sys.stdin.isatty()


def print_json(document: object) -> None:
    """One JSON document on stdout."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    print(re.sub("[\x7f-\x9f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text))


def plain(answer: BaseModel) -> dict[str, object]:
    """An answer as the wire had it, for --json."""
    document: dict[str, object] = answer.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return document


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows on stdout, as a table on a terminal and as tab-separated lines elsewhere; None is an empty cell."""
    if not rows:
        return
    cells = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            print("\t".join(row))
        return
    console = Console(highlight=False)
    widths = _widths(columns, cells, console.width)
    console.width = max(console.width, sum(widths) + GAP * len(widths))  # on a narrower terminal the lines wrap
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, no_wrap=True, overflow="ellipsis", width=width)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _widths(columns: Sequence[str], cells: Sequence[Sequence[str]], room: int) -> list[int]:
    """A width for each column: what it holds, and where that is too much for the room, less of the widest that may be cut."""
    widths = [max(len(column), *(cell_len(row[index]) for row in cells)) for index, column in enumerate(columns)]
    cut = [index for index, column in enumerate(columns) if column not in WHOLE]
    for index in cut:
        widths[index] = min(widths[index], WIDEST_CELL)
    while sum(widths) + GAP * (len(widths) - 1) > room:
        widest = max(cut, key=widths.__getitem__, default=None)
        if widest is None or widths[widest] <= NARROWEST_CELL:
            break
        widths[widest] -= 1
    return widths


def print_line(*cells: object) -> None:
    """One result as one line on stdout, its cells parted by two spaces on a terminal and by tabs elsewhere."""
    print(*("" if cell is None else printable(str(cell)) for cell in cells), sep="  " if sys.stdout.isatty() else "\t")


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Names and values on stdout, one a line; the values are never cut."""
    width = max(map(len, pairs), default=0) if sys.stdout.isatty() else 0
    for name, value in pairs.items():
        if value not in (None, "", (), [], {}):
            print_line(name.ljust(width), value)


def size(count: int | None) -> str | None:
    """Bytes for people on a terminal ("1.2 MB"), as a plain number elsewhere."""
    return None if count is None else decimal(count) if sys.stdout.isatty() else str(count)


def moment(when: datetime | None) -> str | None:
    """A time: the local minute on a terminal, elsewhere to the second with its zone."""
    if when is None:
        return None
    return f"{when.astimezone():%Y-%m-%d %H:%M}" if sys.stdout.isatty() else when.isoformat(" ", "seconds")


def pointers(aliases: Mapping[str, int | Mapping[int, int]]) -> str:
    """Aliases and where they point: "latest -> 4; prod -> 3 (90%), 4 (10%)" on a terminal, elsewhere latest=4 prod=3:90,4:10."""
    joint = "; " if sys.stdout.isatty() else " "
    return joint.join(pointer(alias, target) for alias, target in sorted(aliases.items()))


def pointer(alias: str, target: int | Mapping[int, int]) -> str:
    """One alias and where it points."""
    weights = {target: 1} if isinstance(target, int) else dict(sorted(target.items()))
    total = sum(weights.values())
    if not sys.stdout.isatty():
        return f"{alias}=" + ",".join(str(version) if len(weights) == 1 else f"{version}:{weight}" for version, weight in weights.items())
    shares = (f"{version}" if len(weights) == 1 else f"{version} ({100 * weight / total:.3g}%)" for version, weight in weights.items())
    return f"{alias} -> " + ", ".join(shares)


def facts(values: Mapping[str, object]) -> str:
    """Names and JSON values in one line, those that say nothing left out."""
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value not in (None, "", [], {}))


def manifest_pairs(manifest: Mapping[str, Any]) -> dict[str, object]:
    """A manifest's fields, one line each: methods and head by their settings, the backbone by its dimensions."""
    methods = manifest.get("methods") or {}
    pairs: dict[str, object] = {"made as": manifest.get("name"), "license": manifest.get("license")}
    pairs |= {f"method {part}": facts(settings) for part, settings in methods.items()}
    pairs |= {"composition": manifest.get("composition"), "head": facts(manifest.get("head") or {})}
    pairs |= {"backbone": facts(manifest.get("backbone") or {}), "source": facts(manifest.get("source") or {})}
    pairs |= {"golden examples": len(manifest.get("examples") or ()) or None}
    return pairs | {"card": (manifest.get("card") or "").strip()}


def output_rows(prediction: Prediction) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns and rows of one prediction's output, by its kind; raises RowFailed for a row that is an error."""
    output = prediction.output
    if isinstance(output, list) and output and isinstance(output[0], Label):
        return ("label", "score"), [(row.label, f"{row.score:.6g}") for row in output if isinstance(row, Label)]
    if isinstance(output, list) and output and isinstance(output[0], Entity):
        rows: list[tuple[object, ...]] = [
            (row.name, row.word, row.start, row.end, f"{row.score:.6g}") for row in output if isinstance(row, Entity)
        ]
        return ("entity", "word", "start", "end", "score"), rows
    if output == []:
        return (), []
    return ("output",), [(json.dumps(plain(output) if isinstance(output, Array) else output, ensure_ascii=False),)]


@contextmanager
def transfer(description: str) -> Iterator[Report | None]:
    """A progress bar on stderr for as long as the context lasts, as the callback that moves it; None if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)
