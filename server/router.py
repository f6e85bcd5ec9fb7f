"""A model string becomes a Route: versions pinned, compositions resolved, the head chosen. Knows the catalogue, no engine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from adapter_store import composition as blocks
from adapter_store.catalog import Summary, VersionRecord
from adapter_store.composition import Block, Composition, channels, format_composition, parse
from adapter_store.errors import InvalidName, UnsupportedMethod
from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone
from adapter_store.names import Reference
from adapter_store.store import Store
from server.core import Average, Fuse, Route, Setup, Stack, Use, setup_fusions
from server.errors import ApiError
from server.setups import check_setup, reserved_tokens

BASE = Route("base")
MAX_ROUTES = 100_000
MAX_STACKED = 64


@dataclass(frozen=True, slots=True)
class Resolved:
    """A block on the way to a Route: its setup (None: nothing acts), its text with versions, and its members' texts by setup."""

    setup: Setup | None
    text: str


class Router:
    """Resolves model strings against a store. Routes are kept until the catalogue changes, manifests for good (by digest)."""

    def __init__(self, store: Store, backbone: Backbone) -> None:
        self._store = store
        self._backbone = backbone
        self._routes: dict[str, Route] = {}
        self._routes_of = -1
        self._manifests: dict[str, Manifest] = {}
        self._pending: dict[str, str] = {}  # names by digest of what is published together, while it is checked

    def route(self, model: str) -> Route:
        """The route of a model string as the catalogue stands now. Raises InvalidName, NotFound, UnsupportedMethod, ApiError (no head)."""
        catalog = self._store.catalog
        if catalog.n != self._routes_of:
            self._routes.clear()
            self._routes_of = catalog.n
        route = self._routes.get(model)
        if route is None:
            route = self._resolve(parse(model))
            if len(self._routes) < MAX_ROUTES:
                self._routes[model] = route
        return route

    def channels(self, model: str) -> tuple[str, ...]:
        """The model strings that a model string stands for: one for each answer of its `parallel(...)`, else itself."""
        if "parallel" not in model and not self._may_be_parallel(model):
            return (model,)
        composition = parse(model)
        if composition.root is None:
            return (model,)
        found = channels(self._opened(composition.root))
        if len(found) == 1 and found[0] == composition.root:
            return (model,)
        if composition.head is not None:
            raise InvalidName("A parallel composition answers with the heads of its members, so '#' cannot choose one.")
        return tuple(format_composition(Composition(block)) for block in found)

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a package in the store."""
        manifest = self._manifests.get(digest)
        if manifest is None:
            manifest = self._manifests[digest] = self._store.manifest(digest)
        return manifest

    def forget(self, digest: str) -> None:
        """Drops what is kept of a deleted package."""
        self._manifests.pop(digest, None)

    def check(self, manifest: Manifest, digest: str, pending: Mapping[str, Manifest]) -> None:
        """Raises UnsupportedMethod or NotFound where the composition of a package that is being published is not served.

        `pending` are packages that are published together with it, by their pins.
        """
        if manifest.composition is None:
            return
        checking = Router(self._store, self._backbone)
        checking._pending = {pin.rpartition("@")[2]: pin.rpartition("@")[0] for pin in pending}
        checking._manifests = {pin.rpartition("@")[2]: one for pin, one in pending.items()} | {digest: manifest}
        for block in channels(_root(manifest)):
            setup = checking._block(block, digest).setup
            if setup is not None:
                check_setup(setup, checking.manifest, checking._shown, self._backbone)

    def _resolve(self, composition: Composition) -> Route:
        if composition.root is None:
            resolved, model, digest = Resolved(None, "base"), "base", None
        else:
            if len(channels(self._opened(composition.root))) > 1:
                raise ApiError(400, "several_answers", "A parallel composition has several answers: ask through /v1/predict.", "model")
            resolved = self._block(composition.root, None)
            model = resolved.text
            single = isinstance(composition.root, blocks.Adapter)
            digest = self._record(composition.root.reference).digest if single else None  # type: ignore[union-attr]
        if resolved.setup is not None:
            check_setup(resolved.setup, self.manifest, self._shown, self._backbone)
        head, head_digest = self._head(composition)
        if composition.head is not None:
            model = f"{model}#{self._record(composition.head).reference}"
        members = tuple(tuple(self._member(child) for child in fuse.children) for fuse in setup_fusions(resolved.setup))
        reserved = reserved_tokens(resolved.setup, self.manifest)
        return Route(model, digest, resolved.setup, head, head_digest, members, reserved)

    def _may_be_parallel(self, model: str) -> bool:
        """Whether a plain reference could be a published parallel: only such a package is opened for it."""
        if "(" in model or model == "base":
            return "(" in model
        return True

    # Blocks to setups. `self` is the digest that "self" means inside a package's composition, None at the top.

    def _block(self, block: Block, self_digest: str | None) -> Resolved:
        match block:
            case blocks.Adapter(reference):
                if reference.name == "self":
                    assert self_digest is not None
                    return Resolved(Use(self_digest), "self")
                record = self._record(reference)
                return Resolved(self._package(record), record.reference)
            case blocks.Stack(children):
                flat = [inner for child in children for inner in (child.children if isinstance(child, blocks.Stack) else (child,))]
                parts = [self._block(child, self_digest) for child in flat]
                return Resolved(_stacked([part.setup for part in parts]), f"stack({', '.join(part.text for part in parts)})")
            case blocks.Average(children, weights):
                parts = [self._block(child, self_digest) for child in children]
                setups = self._all(parts, "average")
                pairs = ", ".join(f"{part.text}:{weight:.12g}" for part, weight in zip(parts, weights, strict=True))
                return Resolved(Average(setups, weights), f"average({pairs})")
            case blocks.Fuse(fusion, children):
                parts = [self._block(child, self_digest) for child in children]
                setups = self._all(parts, "fuse")
                own = fusion.name == "self"
                digest = self_digest if own else self._record(fusion).digest
                assert digest is not None
                shown = "self" if own else self._record(fusion).reference
                return Resolved(Fuse(digest, setups), f"fuse[{shown}]({', '.join(part.text for part in parts)})")
            case blocks.Parallel():
                raise UnsupportedMethod("parallel(...) has several answers and cannot be part of another block here.")

    def _record(self, reference: Reference) -> VersionRecord:
        """The version that a reference means."""
        if self._pending.get(reference.selector) == reference.name:
            return VersionRecord(reference.name, 0, reference.selector, "", Summary(size=0, parameters=0))
        return self._store.resolve(reference)

    def _all(self, parts: list[Resolved], word: str) -> tuple[Setup, ...]:
        for part in parts:
            if part.setup is None:
                raise UnsupportedMethod(f"{word}(...) takes adapters, and '{part.text}' has a head only.")
        return tuple(part.setup for part in parts if part.setup is not None)

    def _package(self, record: VersionRecord) -> Setup | None:
        """What one package stands for: its own adapter, or its composition."""
        manifest = self.manifest(record.digest)
        if manifest.composition is None:
            return Use(record.digest) if manifest.methods else None
        return self._block(_root(manifest), record.digest).setup

    def _opened(self, block: Block) -> Block:
        """The block with published parallels (and what holds them) written out, so that their channels can be counted."""
        match block:
            case blocks.Adapter(reference) if reference.name != "self":
                record = self._record(reference)
                manifest = self.manifest(record.digest)
                if manifest.composition is None or "parallel" not in manifest.composition:
                    return block
                return self._opened(_root(manifest))
            case blocks.Stack(children):
                return blocks.Stack(tuple(self._opened(child) for child in children))
            case blocks.Parallel(children):
                return blocks.Parallel(tuple(self._opened(child) for child in children))
            case _:
                return block

    # Heads

    def _head(self, composition: Composition) -> tuple[Head | None, str | None]:
        """The head that was asked for, else that of the outermost fusion or of the last member which has one."""
        if composition.head is not None:
            record = self._record(composition.head)
            found = next(self._heads(blocks.Adapter(composition.head)), None)
            if found is None:
                raise ApiError(400, "no_head", f"'{record.reference}' has no head that could follow '#'.", "model")
            return found
        return next(self._heads(composition.root), (None, None)) if composition.root is not None else (None, None)

    def _heads(self, block: Block, self_digest: str | None = None) -> Iterator[tuple[Head, str]]:
        """The heads of a block, the one that counts first."""
        match block:
            case blocks.Adapter(reference):
                digest = self_digest if reference.name == "self" else self._record(reference).digest
                assert digest is not None
                manifest = self.manifest(digest)
                if manifest.head is not None:
                    yield manifest.head, digest
                elif manifest.composition is not None and reference.name != "self":
                    yield from self._heads(_root(manifest), digest)
            case blocks.Fuse(fusion, children):
                yield from self._heads(blocks.Adapter(fusion), self_digest)
                for child in reversed(children):
                    yield from self._heads(child, self_digest)
            case blocks.Stack(children) | blocks.Average(children, _) | blocks.Parallel(children):
                for child in reversed(children):
                    yield from self._heads(child, self_digest)

    def _member(self, setup: Setup) -> str:
        match setup:
            case Use(digest):
                return self._shown(digest)
            case Stack(children):
                return f"stack({', '.join(self._member(child) for child in children)})"
            case _:
                return type(setup).__name__.lower()

    def _shown(self, digest: str) -> str:
        """A package as a sentence names it: one of the versions that hold it."""
        records = (record for entry in self._store.entries() for record in entry.versions.values())
        return next((record.reference for record in records if record.digest == digest), digest)


def _stacked(setups: list[Setup | None]) -> Setup | None:
    """Setups one after the other; stacks inside a stack are part of it, and what does not act is left out."""
    flat: list[Setup] = []
    for setup in setups:
        flat += setup.children if isinstance(setup, Stack) else [] if setup is None else [setup]
        if len(flat) > MAX_STACKED:  # published stacks of each other would double with each
            raise UnsupportedMethod(f"The stack holds more than {MAX_STACKED} adapters, those of the packages in it counted: stack fewer.")
    return None if not flat else flat[0] if len(flat) == 1 else Stack(tuple(flat))


def _root(manifest: Manifest) -> Block:
    """The block of a package that has a composition."""
    assert manifest.composition is not None
    root = parse(manifest.composition).root
    assert root is not None
    return root
