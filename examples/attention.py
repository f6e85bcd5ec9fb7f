"""What a fusion attends to: the share of each member in each layer and site, as a table.

    python examples/attention.py "Who wrote Hamlet ?"
    python examples/attention.py --file work/question-type/test.jsonl

Of one text the shares are averaged over its tokens, with the lowest and the highest token; of several, each text's average is
averaged over the texts. A file has a JSON object with "inputs" on each line, as examples/train writes them. Uses the server at
TURRET_URL if one answers there, else starts its own.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from demo import server
from rich import box
from rich.console import Console
from rich.table import Table

BATCH = 64

Shares = dict[tuple[int, str], list[list[float]]]  # by layer and site: one row per token or text, one column per member


def explained(url: str, model: str, texts: list[str]) -> Iterator[dict[str, Any]]:
    """The result of each text, with what the fusion attended to."""
    for start in range(0, len(texts), BATCH):
        body = {"model": model, "inputs": texts[start : start + BATCH], "parameters": {"explain": True, "top_k": 1, "truncate": True}}
        response = httpx.post(f"{url}/v1/predict", json=body, timeout=120)
        if response.is_error:
            raise SystemExit(response.json()["error"]["message"])
        for result in response.json()["results"]:
            if "error" in result:
                raise SystemExit(result["error"]["message"])
            yield result


def shares(results: list[dict[str, Any]]) -> Shares:
    """Per layer and site, the tokens of a single text, or the average token of each text."""
    found: Shares = defaultdict(list)
    for result in results:
        for fusion in result["attention"]:
            tokens = fusion["weights"]["data"]
            found[fusion["layer"], fusion["site"]] += tokens if len(results) == 1 else [mean(tokens)]
    return found


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def table(members: list[str], found: Shares, title: str) -> Table:
    """Average, lowest and highest share of each member."""
    shown = Table("layer", "site", *members, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for (layer, site), rows in found.items():
        columns = zip(*rows, strict=True)
        cells = (f"{average:.2f} ({min(column):.2f} to {max(column):.2f})" for average, column in zip(mean(rows), columns, strict=True))
        shown.add_row(str(layer), site, *cells)
    whole = mean([mean(rows) for rows in found.values()])
    shown.add_section()
    shown.add_row("all", "", *(f"{share:.2f}" for share in whole))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="*", help="one text or several")
    parser.add_argument("--file", type=Path, help='texts from the lines of a file, JSON objects with "inputs"')
    parser.add_argument("--model", default="question-type")
    options = parser.parse_args()
    texts = [*options.text]
    if options.file:
        texts += [json.loads(line)["inputs"] for line in options.file.read_text(encoding="utf-8").splitlines()]
    if not texts:
        parser.error("give a text, or --file")

    with server() as url:
        results = list(explained(url, options.model, texts))
    if len(results) == 1:
        best, tokens = results[0]["output"][0], results[0]["usage"]["input_tokens"]
        title = f"{texts[0]}\n{best['label']} ({best['score']:.3f}); mean (lowest to highest) of {tokens} tokens"
    else:
        title = f"mean (lowest to highest) of {len(results):,} texts"
    Console(width=None if sys.stdout.isatty() else 120).print(table(results[0]["attention"][0]["members"], shares(results), title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
