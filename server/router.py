"""A model string becomes a Route: versions pinned, compositions resolved, the head chosen. Knows the catalogue, no engine.

Who asks matters in two ways: a name that the caller may not know of is answered as one that does not exist, and a weighted alias
is drawn by the caller's key, so that the same key stays with the same version.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from adapter_store import composition as blocks
from adapter_store.catalog import Summary, VersionRecord
from adapter_store.composition import Block, Composition, channels, format_composition, parse, references, replaced
from adapter_store.errors import InvalidName, UnsupportedMethod
from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone
from adapter_store.names import Reference
from adapter_store.signatures import Trust
from adapter_store.store import Store
from server.access.visibility import check_name
from server.core import Average, Fuse, Route, Setup, Stack, Terms, Use, setup_fusions
from server.errors import ApiError
from server.setups import check_setup, reserved_tokens

BASE = Route("base")
DEFAULT_TERMS = Terms()
MAX_KNOWN = 10_000
MAX_STACKED = 64

Names = dict[str, str]  # how a sentence or an answer names a package, by digest


class ManifestNotRead(Exception):
    """A route needs a manifest that has to be read first (`Router.read`, on a thread that may block)."""

    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        self.digest = digest


@dataclass(frozen=True, slots=True)
class Resolved:
    """A block on the way to a Route: its setup (None: nothing acts), and its text with versions."""

    setup: Setup | None
    text: str


@dataclass(slots=True, eq=False)
class Known:
    """A model string that was asked for since the catalogue changed: what it says, whether an alias in it is weighted, its route."""

    composition: Composition
    names: frozenset[str]
    weighted: bool
    route: Route | None = None
    channels: tuple[str, ...] | None = None


class Router:
    """Resolves model strings against a store. What is known of a string is kept until the catalogue changes, manifests by digest.

    `trust` may refuse a version for what signed it (or did not). Without `reads` nothing here waits for the store: a manifest that
    is missing raises ManifestNotRead.
    """

    def __init__(self, store: Store, backbone: Backbone, trust: Trust | None = None, reads: bool = True) -> None:
        self._store = store
        self._trust = Trust(None) if trust is None else trust
        self._reads = reads
        self._backbone = backbone
        self._known: dict[str, Known] = {}
        self._known_of = (-1, -1)
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._faults: Mapping[str, Exception] = {}  # why manifests could not be read, by digest
        self._pending: dict[str, str] = {}  # names by digest of what is published together, while it is checked

    def route(self, model: str, terms: Terms = DEFAULT_TERMS) -> Route:
        """The route of a model string as the catalogue stands now. Raises InvalidName, NotFound, UnsupportedMethod, ApiError (no head)."""
        known = self._look(model, terms)
        if known.weighted:
            return self.route(format_composition(self._drawn(known.composition, terms)), terms)
        if known.route is None:
            known.route = self._resolve(known.composition)
        return known.route

    def channels(self, model: str, terms: Terms = DEFAULT_TERMS) -> tuple[str, ...]:
        """The model strings that a model string stands for: one for each answer of its `parallel(...)`, else itself."""
        known = self._look(model, terms)
        if known.weighted:
            return self._channels(model, self._drawn(known.composition, terms))
        if known.channels is None:
            known.channels = self._channels(model, known.composition)
        return known.channels

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a package in the store."""
        manifest = self._manifests.get(digest)
        if manifest is None:
            if digest in self._faults:
                raise self._faults[digest]
            if not self._reads:
                raise ManifestNotRead(digest)
            manifest = self.read(digest)
        return manifest

    def read(self, digest: str) -> Manifest:
        """The same, from the store; blocks, and may be called from any thread."""
        manifest = self._manifests[digest] = self._store.manifest(digest)
        if len(self._manifests) > MAX_KNOWN:
            self._manifests.popitem(last=False)
        return manifest

    @contextmanager
    def lacking(self, faults: Mapping[str, Exception]) -> Iterator[None]:
        """Within this, manifests that could not be read raise why. It is left in the step of the event loop in which it was entered."""
        self._faults = faults
        try:
            yield
        finally:
            self._faults = {}

    def forget(self, digest: str) -> None:
        """Drops what is kept of a deleted package."""
        self._manifests.pop(digest, None)

    def candidate(self, name: str, manifest: Manifest, digest: str) -> Route:
        """The route that a package will have once it is published as `name`; raises as `route` does."""
        trying = Router(self._store, self._backbone, self._trust)
        trying._pending[digest] = name
        trying._manifests[digest] = manifest
        return trying._resolve(Composition(blocks.Adapter(Reference(name, digest))))

    def _look(self, model: str, terms: Terms) -> Known:
        """What is known of a model string. Raises InvalidName, and NotFound for a name that the caller may not know of."""
        now = (self._store.catalog.n, self._trust.generation)
        if now != self._known_of or len(self._known) > MAX_KNOWN:
            self._known.clear()
            self._known_of = now
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = self._read(model)
        if terms.caller.patterns != ("*",):
            for name in known.names:
                check_name(terms.caller, name)
        return known

    def _read(self, model: str) -> Known:
        composition = parse(model)
        named = [*references(composition.root), *([] if composition.head is None else [composition.head])]
        weighted = any(self._store.catalog.weighted(reference) for reference in named)
        return Known(composition, frozenset(reference.name for reference in named), weighted)

    def _drawn(self, composition: Composition, terms: Terms) -> Composition:
        """The composition with a version in the place of each weighted alias."""

        def version(reference: Reference) -> Reference:
            if not self._store.catalog.weighted(reference):
                return reference
            record = self._store.catalog.resolve(reference, _spot(reference, terms.key))
            return Reference(record.name, str(record.version))

        return replaced(composition, version)

    def check(self, manifest: Manifest, digest: str, pending: Mapping[str, Manifest]) -> None:
        """Raises UnsupportedMethod or NotFound where the composition of a package that is being published is not served.

        `pending` are packages that are published together with it, by their pins.
        """
        if manifest.composition is None:
            return
        checking = Router(self._store, self._backbone, self._trust)
        checking._pending = {pin.rpartition("@")[2]: pin.rpartition("@")[0] for pin in pending}
        checking._manifests.update({pin.rpartition("@")[2]: one for pin, one in pending.items()} | {digest: manifest})
        for block in channels(_root(manifest)):
            names = {digest: "self"}
            setup = checking._block(block, digest, names).setup
            if setup is not None:
                check_setup(setup, checking.manifest, names.__getitem__, self._backbone)

    def _resolve(self, composition: Composition) -> Route:
        names: Names = {}
        if composition.root is None:
            resolved, model, digest = Resolved(None, "base"), "base", None
        else:
            if len(channels(self._opened(composition.root))) > 1:
                raise ApiError(400, "several_answers", "A parallel composition has several answers: ask through /v1/predict.", "model")
            resolved = self._block(composition.root, None, names)
            model = resolved.text
            single = isinstance(composition.root, blocks.Adapter)
            digest = self._record(composition.root.reference).digest if single else None  # type: ignore[union-attr]
        if resolved.setup is not None:
            check_setup(resolved.setup, self.manifest, names.__getitem__, self._backbone)
        head, head_digest = self._head(composition)
        if composition.head is not None:
            model = f"{model}#{self._record(composition.head).reference}"
        members = tuple(tuple(_member(child, names) for child in fuse.children) for fuse in setup_fusions(resolved.setup))
        reserved = reserved_tokens(resolved.setup, self.manifest)
        return Route(model, digest, resolved.setup, head, head_digest, members, reserved)

    def _channels(self, model: str, composition: Composition) -> tuple[str, ...]:
        if composition.root is None:
            return (model,)
        found = channels(self._opened(composition.root))
        if len(found) == 1 and found[0] == composition.root:
            return (model,)
        if composition.head is not None:
            raise InvalidName("A parallel composition answers with the heads of its members, so '#' cannot choose one.")
        return tuple(format_composition(Composition(block)) for block in found)

    # Blocks to setups. `self` is the digest that "self" means inside a package's composition, None at the top.

    def _block(self, block: Block, self_digest: str | None, names: Names) -> Resolved:
        """A block resolved; `names` gets what its packages go by."""
        match block:
            case blocks.Adapter(reference):
                if reference.name == "self":
                    assert self_digest is not None
                    return Resolved(Use(self_digest), "self")
                record = self._record(reference)
                names.setdefault(record.digest, record.reference)
                return Resolved(self._package(record, names), record.reference)
            case blocks.Stack(children):
                flat = [inner for child in children for inner in (child.children if isinstance(child, blocks.Stack) else (child,))]
                parts = [self._block(child, self_digest, names) for child in flat]
                return Resolved(_stacked([part.setup for part in parts]), f"stack({', '.join(part.text for part in parts)})")
            case blocks.Average(children, weights):
                parts = [self._block(child, self_digest, names) for child in children]
                setups = self._all(parts, "average")
                pairs = ", ".join(f"{part.text}:{weight:.12g}" for part, weight in zip(parts, weights, strict=True))
                return Resolved(Average(setups, weights), f"average({pairs})")
            case blocks.Fuse(fusion, children):
                parts = [self._block(child, self_digest, names) for child in children]
                setups = self._all(parts, "fuse")
                digest, text = self_digest, "self"
                if fusion.name != "self":
                    record = self._record(fusion)
                    digest, text = record.digest, record.reference
                    names.setdefault(digest, text)
                assert digest is not None
                return Resolved(Fuse(digest, setups), f"fuse[{text}]({', '.join(part.text for part in parts)})")
            case blocks.Parallel():
                raise UnsupportedMethod("parallel(...) has several answers and cannot be part of another block here.")

    def _record(self, reference: Reference) -> VersionRecord:
        """The version that a reference means."""
        if self._pending.get(reference.selector) == reference.name:
            return VersionRecord(reference.name, 0, reference.selector, "", Summary(size=0, parameters=0))
        record = self._store.resolve(reference)
        self._trust.check(record.name, record.digest, record.signature)
        return record

    def _all(self, parts: list[Resolved], word: str) -> tuple[Setup, ...]:
        for part in parts:
            if part.setup is None:
                raise UnsupportedMethod(f"{word}(...) takes adapters, and '{part.text}' has a head only.")
        return tuple(part.setup for part in parts if part.setup is not None)

    def _package(self, record: VersionRecord, names: Names) -> Setup | None:
        """What one package stands for: its own adapter, or its composition."""
        manifest = self.manifest(record.digest)
        if manifest.composition is None:
            return Use(record.digest) if manifest.methods else None
        return self._block(_root(manifest), record.digest, names).setup

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


def _spot(reference: Reference, key: str | None) -> float:
    """Where in [0, 1) a key falls for an alias: always the same place, or any place without a key."""
    if key is None:
        return random.random()
    return int.from_bytes(sha256(f"{reference}\0{key}".encode()).digest()[:7]) / (1 << 56)


def _member(setup: Setup, names: Names) -> str:
    match setup:
        case Use(digest):
            return names[digest]
        case Stack(children):
            return f"stack({', '.join(_member(child, names) for child in children)})"
        case _:
            return type(setup).__name__.lower()


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
