"""Keys of the `adapters` library -> what they hold and where. Every key of a file is matched, or it is an error that names it.

    <model prefix><layer>.<site>.adapters.NAME.{adapter_down.0 | adapter_up | gate | scaling | adapter_norm_before | ...}
    <model prefix><layer>.<linear>.loras.NAME.{lora_A | lora_B | gate.weight | gate.bias}
    <model prefix><layer>.<attention>.prefix_tuning.{prefix_gates.NAME | pool.prefix_tunings.NAME.GROUP}.*
    <model prefix>{prefix_tuning.prefix_tunings | prompt_tuning.prompt_tunings | invertible_adapters | shared_parameters}.NAME.*
    <model prefix><layer>.<site>.adapter_fusion_layer.NAME.{query | key | value | dense}.*

Names may hold anything but dots, so a prefix that ends with NAME and a dot is never the start of another name.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from adapter_store.errors import InvalidPackage
from adapter_store.families import Family
from adapter_store.importers.blocks import equal
from adapter_store.importers.places import Counts, Places, Spot
from adapter_store.names import shown
from adapter_store.tensorfile import TensorData

Kind = Literal["bottleneck", "linear", "gate", "prefix", "prompt", "invertible", "shared", "fusion"]

# The module that holds the adapters, in this version of the library and in its first.
_HOLDERS = (
    "adapters", "attention_text_task_adapters", "attention_text_lang_adapters", "layer_text_task_adapters", "layer_text_lang_adapters"
)  # fmt: skip
_INVERTIBLE = ("invertible_adapters", "invertible_lang_adapters")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: of which kind, at which spot, and there at which site, linear or group of prefixes; `rest` is its name there."""

    kind: Kind
    spot: Spot
    at: str
    rest: str
    key: str
    tensor: TensorData

    def address(self, counts: Counts) -> str:
        """Where it lies under our names: "layers.3.output"; what lies outside the layers is where `at` says."""
        return self.at if self.spot.stack is None else f"layers.{counts.number(self.spot)}.{self.at}"


Rows = list[tuple[str, Kind, str]]


class Grammar:
    """The keys that one adapter, or one fusion, of a family may have."""

    def __init__(self, places: Places, name: str) -> None:
        self.places = places
        family = places.family
        self._inside: list[Rows] = [list(_inside(family, stack, name)) for stack in range(len(family.layers))]
        self._outside: Rows = list(_outside(family, name))

    def entries(self, weights: Mapping[str, TensorData], kinds: frozenset[Kind], what: str) -> list[Entry]:
        """All tensors of a file, matched; raises InvalidPackage for one that is none of `what` or not of these kinds."""
        found: list[Entry] = []
        for key, tensor in weights.items():
            entry = self._entry(key, tensor)
            if entry is None or entry.kind not in kinds:
                raise InvalidPackage(f"The weights hold the tensor {shown(key, 160)}, which is none of {what}.")
            found.append(entry)
        return found

    def _entry(self, key: str, tensor: TensorData) -> Entry | None:
        for spot in self.places.spots(key):
            rows = self._outside if spot.stack is None else self._inside[spot.stack]
            for prefix, kind, at in rows:
                if spot.rest.startswith(prefix):
                    rest = spot.rest[len(prefix) :]
                    if kind == "prefix":
                        at, _, rest = rest.partition(".")
                        at = self.places.family.prefix_groups.get(at, "")
                    return Entry(kind, spot, at, rest, key, tensor)
        return None


def _inside(family: Family, stack: int, name: str) -> Iterator[tuple[str, Kind, str]]:
    layers = family.layers[stack]
    for module in layers.sites:
        for holder in _HOLDERS:
            yield f"{module.holder}.{holder}.{name}.", "bottleneck", module.site
        yield f"{module.holder}.adapter_fusion_layer.{name}.", "fusion", module.site
    for linear, paths in layers.linears.items():
        for path in paths.split("|"):
            yield f"{path}.loras.{name}.", "linear", linear
    for group, path in layers.attentions.items():
        yield f"{path}.prefix_tuning.prefix_gates.{name}.", "gate", group
        yield f"{path}.prefix_tuning.pool.prefix_tunings.{name}.", "prefix", ""


def _outside(family: Family, name: str) -> Iterator[tuple[str, Kind, str]]:
    yield f"prefix_tuning.prefix_tunings.{name}.", "prefix", ""
    yield f"prompt_tuning.prompt_tunings.{name}.", "prompt", ""
    yield f"shared_parameters.{name}.", "shared", "shared"
    for module in _INVERTIBLE:
        yield f"{family.invertible.replace(_INVERTIBLE[0], module)}.{name}.", "invertible", ""


@dataclass(slots=True)
class Collected:
    """Tensors under our names, with the key that each came from. The library writes some twice: they must then be equal."""

    tensors: dict[str, TensorData]
    sources: dict[str, str]

    def add(self, name: str, tensor: TensorData, source: str) -> None:
        """Raises InvalidPackage where the name is taken by another tensor."""
        if name in self.tensors and not equal(self.tensors[name], tensor):
            raise contradiction(self.sources[name], source)
        self.tensors.setdefault(name, tensor)
        self.sources.setdefault(name, source)

    def update(self, other: "Collected", prefix: str = "") -> None:
        """Takes another's tensors in, under a prefix."""
        for name, tensor in other.tensors.items():
            self.add(prefix + name, tensor, other.sources[name])


def collected(pairs: Iterable[tuple[str, TensorData, str]] = ()) -> Collected:
    """Tensors under our names from (name, tensor, source)."""
    whole = Collected({}, {})
    for name, tensor, source in pairs:
        whole.add(name, tensor, source)
    return whole


def unexpected(entry: Entry) -> InvalidPackage:
    """The error for a tensor whose name is of the library's grammar, but not of this adapter's config."""
    return InvalidPackage(f"The weights hold the tensor {shown(entry.key, 160)}, which the adapter's config does not call for.")


def contradiction(one: str, other: str) -> InvalidPackage:
    """The error for two tensors that should be one."""
    return InvalidPackage(f"The weights hold {shown(one, 160)} and {shown(other, 160)}, which contradict each other.")
