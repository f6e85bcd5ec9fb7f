"""A model string becomes a Route: versions pinned, stacks flattened, the head chosen. Knows the catalogue, no engine."""

from adapter_store.catalog import VersionRecord
from adapter_store.composition import Adapter, Block, Composition, Stack, parse
from adapter_store.errors import UnsupportedMethod
from adapter_store.manifest import Head, Manifest
from adapter_store.names import Reference
from adapter_store.store import Store
from server.core import Route
from server.errors import ApiError

BASE = Route("base")

_Member = tuple[VersionRecord, Manifest]


class Router:
    """Resolves model strings against a store. Routes are kept until the catalogue changes, manifests for good (by digest)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._routes: dict[str, Route] = {}
        self._routes_of = -1
        self._manifests: dict[str, Manifest] = {}

    def route(self, model: str) -> Route:
        """The route of a model string as the catalogue stands now. Raises InvalidName, NotFound, UnsupportedMethod, ApiError (no head)."""
        catalog = self._store.catalog
        if catalog.n != self._routes_of:
            self._routes.clear()
            self._routes_of = catalog.n
        route = self._routes.get(model)
        if route is None:
            route = self._resolve(parse(model))
            if len(self._routes) < 100_000:
                self._routes[model] = route
        return route

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a package in the store."""
        manifest = self._manifests.get(digest)
        if manifest is None:
            manifest = self._manifests[digest] = self._store.manifest(digest)
        return manifest

    def forget(self, digest: str) -> None:
        """Drops what is kept of a deleted package."""
        self._manifests.pop(digest, None)

    def _resolve(self, composition: Composition) -> Route:
        members = [] if composition.root is None else self._members(composition.root)
        adapters = tuple(digest for member in members for digest in self._stack(member))
        head, head_digest = self._head(composition.head, members)
        match composition.root:
            case None:
                model, digest = "base", None
            case Adapter():
                model, digest = members[0][0].reference, members[0][0].digest
            case _:
                model, digest = f"stack({', '.join(record.reference for record, _ in members)})", None
        if composition.head is not None:
            model = f"{model}#{self._store.resolve(composition.head).reference}"
        return Route(model, digest, adapters, head, head_digest)

    def _members(self, block: Block) -> list[_Member]:
        records = [self._store.resolve(reference) for reference in stacked(block)]
        return [(record, self.manifest(record.digest)) for record in records]

    def _stack(self, member: _Member) -> tuple[str, ...]:
        """The digests of adapters that one package stands for: its own, or those of its composition."""
        record, manifest = member
        own = (record.digest,) if manifest.methods else ()
        if manifest.composition is None:
            return own
        return tuple(digest for reference in stacked(parse(manifest.composition).root) for digest in self._pinned(reference, own))

    def _pinned(self, reference: Reference, own: tuple[str, ...]) -> tuple[str, ...]:
        if reference.name == "self":
            return own
        record = self._store.resolve(reference)
        return self._stack((record, self.manifest(record.digest)))

    def _head(self, asked: Reference | None, members: list[_Member]) -> tuple[Head | None, str | None]:
        """The head that was asked for, else that of the last member which has one."""
        if asked is not None:
            record = self._store.resolve(asked)
            head = self.manifest(record.digest).head
            if head is None:
                raise ApiError(400, "no_head", f"'{record.reference}' has no head that could follow '#'.", "model")
            return head, record.digest
        for record, manifest in reversed(members):
            if manifest.head is not None:
                return manifest.head, record.digest
        return None, None


def stacked(block: Block | None) -> tuple[Reference, ...]:
    """The members of a block that is a stack (or one adapter), first to last; raises UnsupportedMethod for other blocks."""
    match block:
        case None:
            return ()
        case Adapter(reference):
            return (reference,)
        case Stack(children):
            return tuple(reference for child in children for reference in stacked(child))
        case _:
            raise UnsupportedMethod(f"Compositions with {type(block).__name__.lower()}(...) are not served by this version; stack(...) is.")
