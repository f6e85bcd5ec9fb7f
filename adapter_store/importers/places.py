"""Keys of foreign files -> places of the backbone: layers counted through, canonical names of linears. One reader for all formats.

Knows the paths of `families.py` and the prefixes before them; knows nothing of adapters.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from adapter_store.errors import InvalidPackage, WrongBackbone
from adapter_store.families import FAMILIES, LINEARS, Family
from adapter_store.methods import Backbone

NAME_BACKBONE = "name the backbone that it is for"
_NUMBER = "(0|[1-9][0-9]{0,3})"


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a key points. stack: None outside the layers, 0 the first, 1 the decoder; `rest` is the key from there on."""

    stack: int | None
    group: int
    layer: int
    rest: str


class Places:
    """The paths of one family."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.family: Family = FAMILIES[model_type]
        self.prefixes = tuple(dict.fromkeys(("", self.family.prefix, self.family.library_prefix or "")))
        self._paths = [re.compile(_pattern(layers.path), re.DOTALL) for layers in self.family.layers]
        self._linears = [
            {path: name for name, paths in layers.linears.items() for path in paths.split("|")} for layers in self.family.layers
        ]
        self._single = {path: name for name, path in self.family.linears.items()}

    def spots(self, key: str) -> Iterator[Spot]:
        """The places that a key may mean, with each prefix that it may have; usually one of them makes sense."""
        for prefix in self.prefixes:
            if not key.startswith(prefix):
                continue
            inner = key[len(prefix) :]
            for stack, path in enumerate(self._paths):
                if match := path.fullmatch(inner):
                    groups = match.groupdict()
                    yield Spot(stack, int(groups.get("g") or 0), int(groups["i"]), groups["rest"])
            yield Spot(None, 0, 0, inner)

    def linear(self, spot: Spot, path: str) -> str | None:
        """The canonical name of the linear at a path from a spot."""
        return self._single.get(path) if spot.stack is None else self._linears[spot.stack].get(path)


def _pattern(path: str) -> str:
    pattern = (
        re.escape(path + ".").replace(r"\{g\}", _NUMBER.replace("(", "(?P<g>", 1)).replace(r"\{i\}", _NUMBER.replace("(", "(?P<i>", 1))
    )
    return f"{pattern}(?P<rest>.+)"


@dataclass(frozen=True, slots=True)
class Counts:
    """How layers are counted through: the layers of each stack, and how many of them one group of ALBERT has."""

    layers: tuple[int, ...]
    inner: int = 1

    @property
    def total(self) -> int:
        return sum(self.layers)

    @property
    def decoder(self) -> int:
        """Number of the decoder's layers, 0 in models of one stack."""
        return sum(self.layers[1:])

    def number(self, spot: Spot) -> int:
        """A layer's number, encoder first and then decoder."""
        assert spot.stack is not None
        return sum(self.layers[: spot.stack]) + spot.group * self.inner + spot.layer


def count_layers(spots: Iterable[Spot], left_out: frozenset[int], family: Family, backbone: Backbone | None, what: str) -> Counts:
    """The layers of the model: the backbone's, else those that the keys and the layers left out add up to.

    Raises WrongBackbone where keys and backbone contradict each other, InvalidPackage where the number cannot be known.
    """
    inside = {(spot.stack, spot.group, spot.layer) for spot in spots if spot.stack is not None}
    inner = 1 + max((layer for _, _, layer in inside), default=0) if family.shared_layers else 1
    found: list[set[int]] = [set() for _ in family.layers]
    for stack, group, layer in inside:
        found[stack or 0].add(group * inner + layer)
    if backbone is None:
        return Counts(_guess(found, left_out), inner)
    counts = (backbone.encoder_layers, backbone.decoder_layers)[: len(family.layers)]
    first = 0
    for count, layers in zip(counts, found, strict=True):
        _check_reach(layers, {layer - first for layer in left_out}, count, what)
        first += count
    return Counts(counts, inner)


def _check_reach(layers: set[int], left_out: set[int], count: int, what: str) -> None:
    if not layers:
        return
    reach = max(layers) + 1
    if reach > count:
        raise WrongBackbone(f"{what} reaches layer {reach - 1}, but the backbone has only {count} layers.")
    missing = set(range(reach, count)) - left_out
    if missing:
        raise WrongBackbone(f"{what} ends at layer {min(missing) - 1}, but the backbone has {count} layers.")


def _guess(found: list[set[int]], left_out: frozenset[int]) -> tuple[int, ...]:
    """The numbers of layers that explain which ones are there and which are left out."""
    if not any(found) and left_out and len(found) == 1:
        return (max(left_out) + 1,)
    if not any(found):
        raise InvalidPackage(f"The folder does not say how many layers its model has: {NAME_BACKBONE}.")
    if len(found) == 1:
        return (max(*found[0], *left_out, 0) + 1,)
    least = [max(layers, default=-1) + 1 for layers in found]
    spare = range(len(left_out) + 1)
    fitting = [
        (least[0] + more, least[1] + also)
        for more in spare
        for also in spare
        if max(left_out, default=-1) < least[0] + more + least[1] + also
        and _explained(found[0], least[0] + more, 0, left_out)
        and _explained(found[1], least[1] + also, least[0] + more, left_out)
    ]
    if len(fitting) != 1:
        raise InvalidPackage(f"The folder does not say how many layers the model's encoder and decoder have: {NAME_BACKBONE}.")
    return fitting[0]


def _explained(layers: set[int], count: int, first: int, left_out: frozenset[int]) -> bool:
    return layers == {layer for layer in range(count) if first + layer not in left_out}


def addresses(counts: Counts, per_layer: Mapping[int, Iterable[str]]) -> tuple[str, ...]:
    """Addresses of linears in order: layer by layer, within a layer in the order of the canonical names."""
    order = {name: place for place, name in enumerate(LINEARS)}
    return tuple(
        f"layers.{layer}.{name}" for layer in range(counts.total) for name in sorted(per_layer.get(layer, ()), key=order.__getitem__)
    )


@dataclass(slots=True)
class Dimensions:
    """What tensors tell of the dimensions of the model's linears, (in, out) each, None where they do not."""

    known: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def see(self, name: str, inputs: int | None = None, outputs: int | None = None) -> None:
        """Notes a dimension of the linear `name` (or of that at an address), unless it is known already."""
        name = name.rpartition(".")[2]
        before = self.known.get(name, (None, None))
        self.known[name] = (before[0] or inputs, before[1] or outputs)

    def complete(self, hidden: int) -> dict[str, tuple[int, int]]:
        """The linears whose dimensions are known, also because they read or write the hidden state."""
        wide = self.known.get("up", (None, None))[1]
        whole: dict[str, tuple[int, int]] = {}
        for name, (inputs, outputs) in self.known.items():
            inputs = inputs or (hidden if name in READS_HIDDEN else wide if name == "down" else None)
            outputs = outputs or (hidden if name in WRITES_HIDDEN else None)
            if inputs and outputs:
                whole[name] = (inputs, outputs)
        return whole


READS_HIDDEN = frozenset({"q", "k", "v", "qkv", "cross_q", "cross_k", "cross_v", "up", "gate", "pooler"})
WRITES_HIDDEN = frozenset({"o", "cross_o", "down", "pooler", "embedding_projection"})
