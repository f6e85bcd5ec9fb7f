"""What an operator lets a package be: limits as data, each with the sentence that a package over it is refused with.

The models of the manifest have hard maxima of their own, which are the defaults here. Limits are the tighter ones of one server.
"""

from collections.abc import Callable
from dataclasses import dataclass

from adapter_store.composition import MAX_DEPTH, MAX_LENGTH, Adapter, Block, parse, references
from adapter_store.errors import InvalidPackage
from adapter_store.golden import MAX_EXAMPLES
from adapter_store.manifest import MAX_CARD, MAX_LABEL_LENGTH, MAX_LABELS, Manifest
from adapter_store.methods import MAX_BOTTLENECK, Bottleneck, LoRA, Prefix, Prompt
from adapter_store.methods.lora import MAX_RANK
from adapter_store.methods.prefix import MAX_PREFIX
from adapter_store.tensorfile import MAX_HEADER, MAX_TENSORS


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a package may have. `open_package` refuses what is over one of them with one sentence that names it.

    max_rank: rank of a LoRA or of a Compacter's factors, and width of a bottleneck. max_prefix: length of a prefix or prompt.
    max_members: packages that a composition names, each time that it names one. max_header and max_bytes are in bytes.
    """

    max_bytes: int = 1 << 30
    max_header: int = MAX_HEADER
    max_manifest: int = 4 << 20
    max_tensors: int = MAX_TENSORS
    max_labels: int = MAX_LABELS
    max_label_length: int = MAX_LABEL_LENGTH
    max_rank: int = max(MAX_RANK, MAX_BOTTLENECK)
    max_prefix: int = MAX_PREFIX
    max_members: int = 64
    max_composition: int = MAX_LENGTH
    max_composition_depth: int = MAX_DEPTH
    max_card: int = MAX_CARD
    max_examples: int = MAX_EXAMPLES

    def check(self, manifest: Manifest) -> None:
        """Raises InvalidPackage for the first thing of a manifest that is over its limit."""
        for field, (count, what, advice) in _COUNTS.items():
            value, limit = count(manifest), getattr(self, field)
            if value > limit:
                raise InvalidPackage(f"{what.format(value)}; this server allows at most {limit} ({field}): {advice}.")


def _labels(manifest: Manifest) -> tuple[str, ...]:
    return () if manifest.head is None else manifest.head.labels


def _rank(manifest: Manifest) -> int:
    """The widest that anything low-rank of a package is. The manifest's shape law must hold."""
    widest = 0
    for method in manifest.methods.values():
        match method:
            case LoRA():
                widest = max(widest, *map(method.rank_of, method.modules))
            case Bottleneck():
                backbone = manifest.backbone
                acting = [layer for layer in range(backbone.num_layers) if method.sites(layer, backbone)]
                widths = [method.size(layer, backbone.hidden_size) for layer in acting]
                widest = max(widest, *widths, method.phm_rank if method.phm_layer else 0)
    return widest


def _prefix(manifest: Manifest) -> int:
    lengths = [method.prefix_length for method in manifest.methods.values() if isinstance(method, Prefix)]
    lengths += [method.prompt_length for method in manifest.methods.values() if isinstance(method, Prompt)]
    return max(lengths, default=0)


def _members(manifest: Manifest) -> int:
    if manifest.composition is None:
        return 0
    return sum(reference.name != "self" for reference in references(parse(manifest.composition).root))


def depth(block: Block | None) -> int:
    """How many blocks lie in each other; 0 for the bare backbone."""
    if block is None:
        return 0
    return 1 if isinstance(block, Adapter) else 1 + max(map(depth, block.children))


# Limit on a manifest -> how much of it there is, what the sentence says of it, and what to do about it.
_COUNTS: dict[str, tuple[Callable[[Manifest], int], str, str]] = {
    "max_labels": (lambda manifest: len(_labels(manifest)), "The head has {} labels", "publish a head with fewer labels"),
    "max_label_length": (
        lambda manifest: max(map(len, _labels(manifest)), default=0),
        "The head has a label of {} characters",
        "shorten its labels",
    ),
    "max_rank": (
        _rank,
        "The package's largest rank or bottleneck width is {}",
        "train the adapter with a lower rank",
    ),
    "max_prefix": (_prefix, "The package's prefix or prompt has the length {}", "train it with a shorter one"),
    "max_members": (_members, "The package is composed of {} members", "compose fewer"),
    "max_composition": (lambda manifest: len(manifest.composition or ""), "The package's composition has {} characters", "shorten it"),
    "max_composition_depth": (
        lambda manifest: depth(None if manifest.composition is None else parse(manifest.composition).root),
        "The package's composition is {} blocks deep",
        "nest fewer blocks",
    ),
    "max_card": (lambda manifest: len(manifest.card), "The package's card has {} characters", "shorten it"),
    "max_examples": (lambda manifest: len(manifest.examples), "The package has {} golden examples", "keep fewer"),
}
