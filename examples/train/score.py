"""Sends a task's whole test split through a running Turret and holds its answers against the offline ones.

    python examples/train/score.py TASK --work work/TASK --url http://127.0.0.1:8080

Reads `test.jsonl`, `predictions.jsonl` and `scores.json` as train.py wrote them; needs nothing but Python. Exits 1 if
one example disagrees: another label, another tag of any word, or a regression value further away than --tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metrics

BATCH = 64


class Turret:
    """The one call this script needs."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"

    def predict(self, model: str, inputs: list[str], output: str) -> list[dict[str, Any]]:
        """The result rows of one batch, in the order of `inputs`."""
        parameters = {"top_k": 1, "truncate": True}
        body = {"model": model, "inputs": inputs, "output": output, "parameters": parameters}
        request = urllib.request.Request(self.url + "/v1/predict", json.dumps(body).encode(), self.headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                results = json.load(response)["results"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise SystemExit(f"{error.code} from {request.full_url}: {said}") from error
        failed = [row["error"] for row in results if row.get("error")]
        if failed or len(results) != len(inputs):
            raise SystemExit(f"{len(results)} rows for {len(inputs)} inputs, {len(failed)} failed: {failed[:1]}")
        return results


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tags_of(logits: dict[str, Any], example: dict[str, Any], labels: list[str]) -> list[str]:
    """The tag of each word's first sub-word; `O` for a word without tokens. Rows of the logits are [CLS] .. [SEP]."""
    tokens, width = logits["shape"]
    expected = [example["tokens"], len(labels)]
    if [tokens, width] != expected:
        raise SystemExit(f"logits are [{tokens}, {width}], expected {expected}: {example['inputs']!r}")
    best = [max(range(width), key=row.__getitem__) for row in logits["data"]]
    return [labels[best[at]] if at >= 0 else "O" for at in example["first"]]


def answers(turret: Turret, model: str, facts: dict[str, Any], test: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Per test example what predictions.jsonl holds, as the server sees it."""
    kind, labels = facts["kind"], facts["labels"]
    for start in range(0, len(test), BATCH):
        part = test[start : start + BATCH]
        rows = turret.predict(model, [e["inputs"] for e in part], "logits" if kind == "tagging" else "decoded")
        for example, row in zip(part, rows, strict=True):
            yield {"tags": tags_of(row["output"], example, labels)} if kind == "tagging" else row["output"][0]


def value(kind: str, answer: dict[str, Any]) -> Any:
    return answer[{"classification": "label", "regression": "score", "tagging": "tags"}[kind]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="a folder name of train.py, and the adapter's name unless --model says otherwise")
    parser.add_argument("--work", type=Path, required=True, help="the folder that train.py wrote")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", help="the name on the server (default: TASK)")
    parser.add_argument("--api-key", default=os.environ.get("TURRET_API_KEY"))
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a regression value")
    options = parser.parse_args()

    facts = json.loads((options.work / "scores.json").read_text(encoding="utf-8"))
    test, offline = read_lines(options.work / "test.jsonl"), read_lines(options.work / "predictions.jsonl")
    kind, gold = facts["kind"], [example["gold"] for example in test]
    turret = Turret(options.url, options.api_key)
    online = list(answers(turret, options.model or options.task, facts, test))

    pairs = [(value(kind, a), value(kind, b)) for a, b in zip(online, offline, strict=True)]
    if kind == "regression":
        disagree = [index for index, (a, b) in enumerate(pairs) if abs(a - b) > options.tolerance]
    else:
        disagree = [index for index, (a, b) in enumerate(pairs) if a != b]
    print("http    ", metrics.score(kind, gold, [a for a, _ in pairs]))
    print("offline ", metrics.score(kind, gold, [b for _, b in pairs]))
    if kind != "tagging":
        gap = max(abs(a["score"] - b["score"]) for a, b in zip(online, offline, strict=True))
        print(f"largest difference of a score: {gap:.2e}")
    print(f"{len(disagree)} of {len(test)} examples disagree")
    for index in disagree[:5]:
        print(f"  line {index + 1}: http {pairs[index][0]!r}, offline {pairs[index][1]!r}: {test[index]['inputs']!r}")
    sys.exit(1 if disagree else 0)


if __name__ == "__main__":
    main()
