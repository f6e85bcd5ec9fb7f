"""Setups of the `adapters` library: adapter_setup.json with a folder for each adapter, fusion and head -> packages, one after the other.

The adapters become packages of their own, then the fusions, then the setup, which holds nothing but its composition (and its head,
where that is not the one that the composition has anyway). Compositions pin by digest, and a digest is known when a package is
written: so an import is a list of steps, each of which builds its package from the pins of those before it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapter_store.composition import Adapter, Average, Block, Fuse, Parallel, Stack, format_block, parse
from adapter_store.errors import InvalidName, InvalidPackage, StoreError, UnsupportedMethod
from adapter_store.importers.adapterhub import import_adapterhub
from adapter_store.importers.adapterhub_folder import HEAD, Config, complete, describe, manifest_of, model_of, read_config
from adapter_store.importers.adapterhub_fusion import SELF, build_fusion, fusion_members, is_fusion
from adapter_store.importers.adapterhub_heads import import_head
from adapter_store.importers.backbones import plain_backbone
from adapter_store.importers.folder import SETUP, Files, ImportedPackage, Options, Remarks, inner_folders, listed, read_object, read_tensors
from adapter_store.importers.places import NAME_BACKBONE, Counts
from adapter_store.manifest import Head
from adapter_store.methods import Backbone
from adapter_store.names import NAME, parse_reference, shown
from adapter_store.tensorfile import TensorData

Pins = Mapping[str, str]
MAX_DEPTH = 8

_REFUSED = {
    "BatchSplit": "send the rows of one request to different models instead",
    "Split": "it cuts one input in pieces, which is not served",
    "MultiTask": "send the rows of one request to different models instead",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One package of a setup: the name to publish it under, and what builds it from the pins ("name@sha256:...") of the names before."""

    name: str
    build: Callable[[Pins], ImportedPackage]


def is_setup(files: Files) -> bool:
    """Whether a folder is a setup."""
    return SETUP in files


def import_setup(files: Files, backbone: Backbone | None, name: str) -> tuple[Step, ...]:
    """The packages of a setup in the order of publishing, the setup itself last; raises InvalidPackage, UnsupportedMethod, InvalidName."""
    setup = _Setup(files, backbone, name)
    return tuple(setup.steps())


@dataclass(frozen=True, slots=True)
class Node:
    """One block of an adapter_setup.json, its kind ("single" is an adapter), and of an average its weights."""

    kind: str
    name: str = ""
    children: tuple["Node", ...] = ()
    weights: tuple[float, ...] = ()

    def singles(self) -> Iterator[str]:
        """The adapters of a block, in order."""
        if self.kind == "single":
            yield self.name
        for child in self.children:
            yield from child.singles()

    def fusions(self) -> Iterator["Node"]:
        """The fusions of a block."""
        if self.kind == "Fuse":
            yield self
        for child in self.children:
            yield from child.fusions()

    def last(self) -> str:
        """The adapter that acts last, which stands for a stack in the name of a fusion."""
        return self.name if self.kind == "single" else self.children[-1].last()


def _node(value: Any, depth: int = 1) -> Node:
    if not isinstance(value, dict) or not isinstance(value.get("children"), list) or not value["children"] or depth > MAX_DEPTH:
        raise InvalidPackage(f"{SETUP} is not valid: every block has a type and a list of children, at most {MAX_DEPTH} deep.")
    kind, children = str(value.get("type")), value["children"]
    if kind == "single":
        if len(children) != 1 or not isinstance(children[0], str) or not children[0]:
            raise InvalidPackage(f"{SETUP} is not valid: a block of the type single has one name.")
        return Node("single", children[0])
    if kind in _REFUSED:
        raise UnsupportedMethod(f"The setup holds a block of the type {kind}, which is not served: {_REFUSED[kind]}.")
    if kind not in _BLOCKS:
        raise UnsupportedMethod(f"The setup holds a block of the type {shown(kind)}, which is not known; known are {', '.join(_BLOCKS)}.")
    inner = tuple(_node(child, depth + 1) for child in children)
    return Node(kind, "", inner, _weights(value.get("kwargs"), len(inner)) if kind == "Average" else ())


def _weights(kwargs: Any, count: int) -> tuple[float, ...]:
    """Of an average, as they are in the file: they sum to 1 there."""
    weights = kwargs.get("weights") if isinstance(kwargs, dict) else None
    if weights is None:
        return (1.0 / count,) * count
    numbers = isinstance(weights, list) and len(weights) == count and all(type(w) in (int, float) and 0 <= w < 1e9 for w in weights)
    if not numbers or sum(weights) <= 0:
        raise InvalidPackage(f"{SETUP} is not valid: an average has a weight of 0 or more for each of its children.")
    return tuple(float(weight) for weight in weights)


_BLOCKS: dict[str, Callable[[Node, tuple[Block, ...]], Block]] = {
    "Stack": lambda node, children: children[0] if len(children) == 1 else Stack(children),
    "Average": lambda node, children: Average(children, tuple(weight / sum(node.weights) for weight in node.weights)),
    "Parallel": lambda node, children: Parallel(children),
    "Fuse": lambda node, children: Fuse(SELF, children),
}


class _Setup:
    """A setup folder while it is read."""

    def __init__(self, files: Files, backbone: Backbone | None, name: str) -> None:
        config = read_object(files, SETUP)
        self.files = files
        self.folders = inner_folders(files)
        self.options = Options(backbone)
        self.name = name
        self.root = _node(config.get("adapter_setup"))
        self.head_setup = config.get("head_setup")
        self.members = {single: self._published(single) for single in dict.fromkeys(self.root.singles())}
        self.fusions = self._fusion_folders()
        self.heads: dict[str, Head | None] = {}
        self.backbone = backbone
        names = [*self.members.values(), *(self._fusion_name(i) for i in range(len(self.fusions))), name]
        if len(set(names)) != len(names):
            raise InvalidName(f"Two parts of the setup would be published under one name: {listed(names)}.")

    def _published(self, member: str) -> str:
        name = f"{self.name}.{member.lower()}"
        if not NAME.fullmatch(name) or "/" in member:
            raise InvalidName(
                f"The member {shown(member, 60)} of the setup would be published as {shown(name)}, which is not a valid name: "
                "rename it, or publish the adapters apart and stack them."
            )
        return name

    def _fusion_name(self, place: int) -> str:
        folder = self.fusions[place][1]
        name = f"{self.name}.{folder.lower()}"
        plain = NAME.fullmatch(name) and "/" not in folder
        return name if plain else f"{self.name}.fusion" + (str(place + 1) if place else "")

    def _fusion_folders(self) -> list[tuple[Node, str]]:
        """Each fusion of the setup with its folder: the one of its name, or the one that fuses its adapters."""
        found: list[tuple[Node, str]] = []
        for node in self.root.fusions():
            names = tuple(child.last() for child in node.children)
            folders = [folder for folder, files in self.folders.items() if is_fusion(files) and fusion_members(files) == names]
            wanted = ",".join(names)
            folder = wanted if wanted in folders else folders[0] if len(folders) == 1 else None
            if folder is None:
                count = "several folders" if folders else "no folder"
                raise InvalidPackage(f"The setup fuses {listed(names)}, and {count} of it holds that fusion (adapter_fusion_config.json).")
            found.append((node, folder))
        return found

    def steps(self) -> Iterator[Step]:
        for member, published in self.members.items():
            yield Step(published, self._member(member, published))
        for place in range(len(self.fusions)):
            yield Step(self._fusion_name(place), self._fusion(place))
        yield Step(self.name, self._whole)

    def _member(self, member: str, published: str) -> Callable[[Pins], ImportedPackage]:
        if member not in self.folders:
            raise InvalidPackage(f"The setup names the adapter {shown(member, 60)}, and there is no folder of that name.")

        def build(pins: Pins) -> ImportedPackage:
            package = _within(member, lambda: import_adapterhub(self.folders[member], self.options))
            self._seen(published, package)
            return package

        return build

    def _fusion(self, place: int) -> Callable[[Pins], ImportedPackage]:
        node, folder = self.fusions[place]

        def build(pins: Pins) -> ImportedPackage:
            composition = self._block(node, pins)
            package = _within(folder, lambda: build_fusion(self.folders[folder], self.options, composition))
            self._seen(self._fusion_name(place), package)
            return package

        return build

    def _seen(self, published: str, package: ImportedPackage) -> None:
        self.heads[published] = package.manifest.head
        if self.backbone is None:
            self.backbone = package.manifest.backbone

    def _block(self, node: Node, pins: Pins, fusion: bool = False) -> Block:
        """The block of a node with pinned members; `fusion`: a fusion is the package that was made of it, else its own weights."""
        if node.kind == "single":
            return Adapter(parse_reference(pins[self.members[node.name]]))
        children = tuple(self._block(child, pins, fusion=True) for child in node.children)
        if node.kind == "Fuse" and fusion:
            place = next(i for i, (own, _) in enumerate(self.fusions) if own is node)
            return Fuse(parse_reference(pins[self._fusion_name(place)]), children)
        return _BLOCKS[node.kind](node, children)

    def _whole(self, pins: Pins) -> ImportedPackage:
        composition = self._block(self.root, pins, fusion=True)
        if isinstance(composition, Adapter):
            composition = Stack((composition,))
        parse(format_block(composition))
        remarks = Remarks([f"setup {shown(self.name)}: {self.root.kind} of {len(self.members)} adapters and {len(self.fusions)} fusions"])
        head, tensors, config = self._head(composition, remarks)
        if self.backbone is None:
            raise InvalidPackage(f"The setup does not tell its model: {NAME_BACKBONE}.")
        counts = Counts((self.backbone.encoder_layers, self.backbone.decoder_layers))
        backbone = plain_backbone(self.backbone, self.backbone.model_type, self.backbone.hidden_size, counts, None, "")
        described = describe(self.files, {**config, "name": self.name.rpartition("/")[2]}, remarks, "adapterhub-setup")
        manifest = manifest_of(described, backbone, {}, head, format_block(composition))
        return ImportedPackage(manifest, tensors, tuple(remarks.report), tuple(remarks.warnings))

    # Heads.

    def _head(self, composition: Block, remarks: Remarks) -> tuple[Head | None, dict[str, TensorData], Config]:
        """The setup's own head, where head_setup names one that its members would not answer with; else none."""
        if not self.head_setup:
            return None, {}, {}
        if self.head_setup is True:
            return self._read_head(self.files, "the setup's folder", composition, remarks)
        names = list(_head_names(self.head_setup))
        own = [name for name in names if name not in self._default_heads()]
        if not own:
            return None, {}, {}
        if len(names) > 1 or isinstance(composition, Parallel):
            raise UnsupportedMethod(
                f"The setup answers with the head {shown(own[0], 60)}, which is not the one of the adapter that it belongs to; "
                "with several heads, each adapter must have its own."
            )
        return self._read_head(self.folders.get(own[0], {}), f"the folder {shown(own[0], 60)}", composition, remarks)

    def _read_head(self, files: Files, where: str, composition: Block, remarks: Remarks) -> tuple[Head, dict[str, TensorData], Config]:
        if not complete(files, HEAD) or self.backbone is None:
            raise InvalidPackage(f"The setup's head_setup asks for a head, and {where} holds none ({HEAD.config}, {HEAD.weights}).")
        config = read_config(files, HEAD)
        model_of([config], self.options.backbone, remarks)
        head, tensors = import_head(config, read_tensors(files, HEAD.weights), self.backbone, remarks)
        return head, tensors, config

    def _default_heads(self) -> list[str]:
        """The names of the heads that the setup answers with by itself, one for each channel of a parallel setup."""
        roots = self.root.children if self.root.kind == "Parallel" else (self.root,)
        return [name for root in roots if (name := self._default_head(root)) is not None]

    def _default_head(self, node: Node) -> str | None:
        """The head of the outermost fusion, else of the last member that has one, by the name of its folder."""
        if node.kind == "single":
            return node.name if self.heads.get(self.members[node.name]) is not None else None
        if node.kind == "Fuse":
            place, folder = next((i, folder) for i, (own, folder) in enumerate(self.fusions) if own is node)
            if self.heads.get(self._fusion_name(place)) is not None:
                return folder
        return next((name for child in reversed(node.children) if (name := self._default_head(child)) is not None), None)


def _head_names(value: Any, depth: int = 1) -> Iterator[str]:
    """The names in a head_setup: one, a list of them, or a block."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth <= MAX_DEPTH:
        for item in value:
            yield from _head_names(item, depth + 1)
    elif isinstance(value, dict) and isinstance(value.get("children"), list) and depth <= MAX_DEPTH:
        for child in value["children"]:
            yield from _head_names(child, depth + 1)
    else:
        raise InvalidPackage(f"{SETUP} is not valid: head_setup names a head, a list of heads or a block of heads.")


def _within(folder: str, build: Callable[[], ImportedPackage]) -> ImportedPackage:
    """Names the folder in the errors of what is built from it."""
    try:
        return build()
    except StoreError as error:
        raise type(error)(f"In the folder {shown(folder, 60)}: {error}") from None
