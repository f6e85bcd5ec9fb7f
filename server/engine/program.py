"""Programs: what a setup does at every place of the model, compiled once per setup and then run flat.

At a site, one adapter in its delta form becomes a slot of a bank, a fusion of plain adapters is folded into two products, and
everything else follows the library's order of operations step by step (`methods/composition.py`). At a linear a setup becomes a
chain of LoRA and (IA)^3 parts; prefixes, invertible adapter, prompt and tuned norms are looked up once.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from adapter_store.methods import Prompt
from server.core import Average, Fuse, Setup, Stack, Use, setup_fusions, setup_uses
from server.engine.attention import Prefixes
from server.engine.bank import Bank
from server.engine.loader import LoadedPackage
from server.methods import composition, lora
from server.methods.bottleneck import DeltaInput, delta_input
from server.methods.fusion import Folded, fold, foldable
from server.methods.invertible import InvertibleWeights


class CompositionError(ValueError):
    """A setup that is not defined for its members; the sentence says which and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """A package on the device. `slot` is its bottleneck's place in a bank, whose weights hold the scaling, if that has a delta form."""

    package: LoadedPackage
    bank: Bank | None = None
    slot: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A delta-form adapter at a site."""

    bank: Bank
    slot: int


@dataclass(frozen=True, slots=True, eq=False)
class FoldedFusion:
    """A folded fusion at a site, and what it reads."""

    folded: Folded
    input: DeltaInput
    number: int


# About what a program and each of its places take in the host's memory, in bytes, so that programs without tensors are bounded too.
PROGRAM_BYTES, PLACE_BYTES = 2048, 512

AtSite = Slot | FoldedFusion | composition.Node


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A setup compiled. `signature` says by layer what acts there (-1: at the embeddings): equal entries compute the same."""

    sites: Mapping[str, AtSite] = field(default_factory=dict)
    linears: Mapping[str, lora.Node] = field(default_factory=dict)
    prefixes: Mapping[tuple[int, str], Prefixes] = field(default_factory=dict)
    shift: int = 0
    prompt: tuple[Prompt, Tensor] | None = None
    invertible: InvertibleWeights | None = None
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    signature: Mapping[int, Hashable] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of what the program holds beside its packages: folded fusions, and about what it takes itself."""
        own = PROGRAM_BYTES + PLACE_BYTES * (len(self.sites) + len(self.linears) + len(self.prefixes) + len(self.norms))
        return own + sum(at_site.folded.nbytes for at_site in self.sites.values() if isinstance(at_site, FoldedFusion))


BARE = Program()


def compile_setup(setup: Setup, residents: Mapping[str, Resident], fast: bool, folded: bool = True) -> Program:
    """The program of a setup; raises CompositionError where it is not defined for its members.

    fast: single adapters go through their banks. folded: fusions are folded too, which takes memory of its own (`Program.nbytes`).
    """
    uses = [residents[digest].package for digest in setup_uses(setup)]
    numbers: dict[Setup, int] = {fuse: number for number, fuse in enumerate(setup_fusions(setup))}
    sites: dict[str, AtSite] = {}
    for address in dict.fromkeys(address for package in uses if package.bottleneck for address in package.bottleneck[1]):
        node = _node(setup, address, residents, numbers)
        if node is not None:
            sites[address] = _fastest(node, residents, folded) if fast else node
    linears: dict[str, lora.Node] = {}
    for address in dict.fromkeys(address for package in uses for address in package.linears):
        linear = _linear_node(setup, address, residents)
        if linear is not None:
            linears[address] = linear
    prefixes: dict[tuple[int, str], Prefixes] = {}
    for package in uses:
        for place, weights in package.prefixes.items():
            prefixes[place] = (*prefixes.get(place, ()), weights)
    first = uses[0]
    norms = {name: tensor for package in uses for name, tensor in package.norms.items()}
    shift = sum(package.shift for package in uses)
    return Program(
        sites,
        linears,
        prefixes,
        shift,
        first.prompt,
        first.invertible,
        norms,
        _signature(setup, sites, linears, prefixes, norms, first, shift),
    )


def _signature(
    setup: Setup,
    sites: Mapping[str, AtSite],
    linears: Mapping[str, lora.Node],
    prefixes: Mapping[tuple[int, str], Prefixes],
    norms: Mapping[str, Tensor],
    first: LoadedPackage,
    shift: int,
) -> dict[int, Hashable]:
    """Layers at which anything acts are told apart by the whole setup; what acts nowhere else is shared."""
    acting = {int(name.split(".")[1]) for name in (*sites, *linears, *norms) if name.startswith("layers.")}
    acting |= {layer for layer, _ in prefixes}
    signature: dict[int, Hashable] = dict.fromkeys(acting, setup)
    # A decoder's cross-attention makes its keys and values of the encoder's tokens: who changes them needs his own.
    own_memory = any(address.endswith((".cross_k", ".cross_v")) for address in linears)
    if first.prompt is not None or first.invertible is not None or shift or own_memory or "embedding_projection" in linears:
        signature[-1] = setup
    return signature


def _node(setup: Setup, address: str, residents: Mapping[str, Resident], numbers: Mapping[Setup, int]) -> composition.Node | None:
    """The setup at one site, without what has no module there."""
    match setup:
        case Use(digest):
            bottleneck = residents[digest].package.bottleneck
            if bottleneck is None or address not in bottleneck[1]:
                return None
            return composition.Adapter(digest, bottleneck[0], bottleneck[1][address])
        case Stack(children):
            nodes = [node for child in children if (node := _node(child, address, residents, numbers)) is not None]
            return None if not nodes else nodes[0] if len(nodes) == 1 else composition.Stacked(tuple(nodes))
        case Average(children, mean_weights):
            found = tuple(_node(child, address, residents, numbers) for child in children)
            return None if all(node is None for node in found) else composition.Averaged(found, mean_weights)
        case Fuse(fusion, children):
            nodes = [node for child in children if (node := _node(child, address, residents, numbers)) is not None]
            if not nodes:
                return None
            fused = residents[fusion].package.fusion
            assert fused is not None
            if address not in fused[1]:
                raise CompositionError(f"members of the fusion act at {address}, where the fusion has no weights")
            return composition.Fused(fused[0], fused[1][address], tuple(nodes), numbers[setup])


def _fastest(node: composition.Node, residents: Mapping[str, Resident], folded: bool) -> AtSite:
    """The fast path of a node, where it has one."""
    if isinstance(node, composition.Adapter):
        resident = residents[node.digest]
        return node if resident.bank is None else Slot(resident.bank, resident.slot)
    if folded and isinstance(node, composition.Fused) and all(isinstance(child, composition.Adapter) for child in node.children):
        children = [child for child in node.children if isinstance(child, composition.Adapter)]
        form = delta_input(children[-1].config.model_copy(update={"use_gating": False, "ln_after": False, "ln_before": False}))
        if form is not None and foldable(node.config, [child.config for child in children]):
            return FoldedFusion(fold(node.config, node.weights, [(child.config, child.weights) for child in children]), form, node.number)
    return node


def _linear_node(setup: Setup, address: str, residents: Mapping[str, Resident]) -> lora.Node | None:
    """The setup at one linear, without what has nothing there."""
    match setup:
        case Use(digest):
            parts = residents[digest].package.linears.get(address, ())
            return None if not parts else parts[0] if len(parts) == 1 else lora.Chain(parts)
        case Stack(children):
            nodes = [node for child in children if (node := _linear_node(child, address, residents)) is not None]
            return None if not nodes else nodes[0] if len(nodes) == 1 else lora.Chain(tuple(nodes))
        case Average(children, weights):
            found = tuple(_linear_node(child, address, residents) for child in children)
            return None if all(node is None for node in found) else lora.Mean(found, weights)
        case Fuse():
            return None
