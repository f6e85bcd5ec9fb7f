"""What must hold of the load test's answers: each is the solo answer of the digests it names, which were in force when it was asked."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.endurance.fleet import LABELS, PAIR, Part, Target
from tests.endurance.solo import Floats, Solo
from tests.endurance.timeline import Timeline
from tests.endurance.traffic import Exchange

TOLERANCE = 1e-4
LIVE = tuple(Part(name, "live") for name in PAIR)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an answer: the digests that it says it comes from, and its numbers."""

    digests: tuple[str, ...]
    values: Floats


@dataclass(slots=True)
class Check:
    """Looks at exchanges and keeps the faults, and what the farthest answer was off by."""

    solo: Solo
    timeline: Timeline
    generations: dict[str, int]  # of the pair's digests: those of one commit have one number
    faults: list[str] = field(default_factory=list)
    rows: int = 0
    farthest: float = 0.0
    by_digest: Counter[str] = field(default_factory=Counter)
    _sticky: dict[tuple[Part, str, int], str] = field(default_factory=dict)

    def all(self, exchanges: Iterable[Exchange]) -> None:
        """Checks exchanges one by one."""
        for one in exchanges:
            if one.status != 200:
                self._fault(one, f"status {one.status}: {one.content[:300]!r}")
                continue
            try:
                self._check(one, read(one))
            except (KeyError, ValueError, IndexError, TypeError) as error:
                self._fault(one, f"{type(error).__name__} {error}: {one.content[:300]!r}")

    def _check(self, one: Exchange, rows: Sequence[Row]) -> None:
        asked: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for (target, text), row in zip(one.ask.rows, rows, strict=True):
            self.rows += 1
            self.by_digest.update(row.digests)
            asked[target.model].add(row.digests)
            self._check_time(one, target, row)
            self._check_numbers(one, target, text, row)
        for model, digests in asked.items():
            if len(digests) > 1:
                self._fault(one, f"{model} was answered by two versions: {digests}")
        self._check_header(one, rows)
        self._check_key(one, rows)
        self._check_pair(one, rows)

    def _check_time(self, one: Exchange, target: Target, row: Row) -> None:
        for part, digest in zip(target.parts, row.digests[-len(target.parts) :], strict=True):
            if digest not in self.timeline.allowed(part, one.sent, one.received):
                self._fault(one, f"{part} was answered by {digest[:19]}, which it did not point to at that time")

    def _check_numbers(self, one: Exchange, target: Target, text: str, row: Row) -> None:
        digests = row.digests
        expected = self.solo.answer(
            target.setup(digests), digests[-1] if len(target.parts) == 1 else digests[target.head], text, target.output
        )
        if expected.shape != row.values.shape:
            self._fault(one, f"{target.model} answered {row.values.shape}, alone it is {expected.shape}")
            return
        off = float(np.abs(expected - row.values).max())
        self.farthest = max(self.farthest, off)
        if not off <= TOLERANCE:
            self._fault(one, f"{target.model} is off by {off:.2g} from the answer of {digests} alone")

    def _check_header(self, one: Exchange, rows: Sequence[Row]) -> None:
        """A request of one model says its digests in its headers."""
        if len({target.model for target, _ in one.ask.rows}) == 1 and one.headers.get("x-turret-digest") not in (
            ",".join(rows[0].digests),
            ", ".join(rows[0].digests),
            rows[0].digests[-1] if len(one.ask.rows[0][0].parts) == 1 else None,
        ):
            self._fault(one, f"the header names {one.headers.get('x-turret-digest')}, the rows {rows[0].digests}")

    def _check_key(self, one: Exchange, rows: Sequence[Row]) -> None:
        """While a weighted alias is not moved, one key meets one version."""
        if one.ask.key is None:
            return
        ((part,), digest) = one.ask.rows[0][0].parts, rows[0].digests[-1]
        possible = self.timeline.possible(part, one.sent, one.received)
        if len(possible) == 1 and self._sticky.setdefault((part, one.ask.key, possible[0]), digest) != digest:
            self._fault(one, f"the key {one.ask.key} met two versions of {part}")

    def _check_pair(self, one: Exchange, rows: Sequence[Row]) -> None:
        """Two aliases that are moved in one commit are seen moved together."""
        digests = [row.digests[-1] for (target, _), row in zip(one.ask.rows, rows, strict=True) if target.parts[0] in LIVE]
        if len({self.generations[digest] for digest in digests}) > 1:
            self._fault(one, f"a commit was seen half: {digests}")

    def _fault(self, one: Exchange, sentence: str) -> None:
        self.faults.append(f"{one.ask.convention} {one.ask.body.get('model', '')}: {sentence}")


def read(one: Exchange) -> list[Row]:
    """The rows of an answer of any convention."""
    content: Any = json.loads(one.content)
    if one.ask.path.startswith("/models/"):
        return [Row(_named(one.headers), _probabilities(content[0]))]
    if one.ask.path == "/v1/embeddings":
        return [Row(_named(one.headers), np.array(item["embedding"], dtype=np.float32)) for item in content["data"]]
    return [
        Row(_digests(result), _values(target, result["output"]))
        for (target, _), result in zip(one.ask.rows, content["results"], strict=True)
    ]


def _named(headers: dict[str, str]) -> tuple[str, ...]:
    return tuple(digest.strip() for digest in headers["x-turret-digest"].split(","))


def _digests(result: dict[str, Any]) -> tuple[str, ...]:
    if "error" in result:
        raise ValueError(f"the row failed: {result['error']}")
    return tuple(result.get("digests") or [result["digest"]])


def _values(target: Target, output: Any) -> Floats:
    match target.output:
        case "decoded":
            return _probabilities(output)
        case "logits":
            return np.array(output["data"], dtype=np.float32)
        case "embedding":
            return np.array(output, dtype=np.float32)


def _probabilities(scores: list[dict[str, Any]]) -> Floats:
    """Scores by label, in the head's order."""
    by_label = {score["label"]: score["score"] for score in scores}
    return np.array([by_label[label] for label in LABELS], dtype=np.float32)
