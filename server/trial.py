"""Golden examples: what a package must answer before it is published, tried by a real forward on this backbone.

The package is not in the store yet: while it is tried, its file and its manifest are staged here, where the loader looks first.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from anyio import from_thread
from pydantic import ValidationError

from adapter_store.errors import GoldenExampleFailed, InvalidPackage
from adapter_store.golden import Example, differences
from adapter_store.manifest import Manifest
from adapter_store.package import Package, sentence
from adapter_store.store import Store
from server.core import Route
from server.errors import ApiError
from server.inference import Answer, Ask, Inference
from server.residency import Residency
from server.router import Router
from server.tasks.inputs import is_batch, sources
from server.tasks.parameters import Parameters


class Staging:
    """Packages on their way into the store, by digest, in front of those that are in it."""

    def __init__(self, store: Store, router: Router) -> None:
        self._store, self._router = store, router
        self._staged: dict[str, tuple[Path, Manifest]] = {}

    @contextmanager
    def holding(self, digest: str, path: Path, manifest: Manifest) -> Iterator[None]:
        """A package's file for as long as it is tried. The same bytes may be tried twice at once."""
        staged = self._staged[digest] = (path, manifest)
        try:
            yield
        finally:
            if self._staged.get(digest) is staged:
                del self._staged[digest]

    def local(self, digest: str) -> AbstractContextManager[Path]:
        """A package's file, for as long as it is entered."""
        staged = self._staged.get(digest)
        return self._store.local(digest) if staged is None else nullcontext(staged[0])

    def manifest(self, digest: str) -> Manifest:
        """A package's manifest. Blocks."""
        staged = self._staged.get(digest)
        return self._router.read(digest) if staged is None else staged[1]


@dataclass(frozen=True, slots=True)
class Trial:
    """Tries packages."""

    router: Router
    residency: Residency
    inference: Inference
    staging: Staging

    def __call__(self, name: str, package: Package, path: Path) -> None:
        """Raises GoldenExampleFailed, with one sentence, for the first example that does not hold. Called on a thread that may block,
        which the event loop has started."""
        if not package.manifest.examples:
            return
        route = self.router.candidate(name, package.manifest, package.digest)
        asks, owners = _asks(route, package.manifest)
        answers = from_thread.run(self._answers, asks, package, path)
        for number, example in enumerate(package.manifest.examples):
            _check(number, example, [answer for answer, owner in zip(answers, owners, strict=True) if owner == number])

    async def _answers(self, asks: list[Ask], package: Package, path: Path) -> list[Answer]:
        with self.staging.holding(package.digest, path, package.manifest):
            try:
                answers, _ = await self.inference.answer(asks)
            finally:
                await self.residency.drop(package.digest)
        return answers


def _asks(route: Route, manifest: Manifest) -> tuple[list[Ask], list[int]]:
    """The asks of all examples, and which example each belongs to."""
    asks: list[Ask] = []
    owners: list[int] = []
    for number, example in enumerate(manifest.examples):
        try:
            parameters = Parameters.model_validate(example.parameters)
            read = sources(example.inputs, f"examples[{number}].inputs")
            if not read:
                raise InvalidPackage(f"The golden example {number} has no inputs.")
            for source in read:
                asks.append(Ask(route.model, source, parameters, example.output, route=route))
                owners.append(number)
        except ValidationError as error:
            raise InvalidPackage(f"The golden example {number} has parameters that are not valid: {sentence(error)}") from None
        except ApiError as error:
            raise InvalidPackage(f"The golden example {number} is not valid: {error}") from None
    return asks, owners


def _check(number: int, example: Example, answers: list[Answer]) -> None:
    fault = next((answer.error for answer in answers if answer.error is not None), None)
    if fault is not None and fault.status == 503:  # the server's state, not the package's fault
        raise fault
    if fault is not None:
        raise GoldenExampleFailed(f"The golden example {number} cannot be answered: {fault}")
    values = [answer.value for answer in answers]
    difference = differences(example.expected, values if is_batch(example.inputs) else values[0], example.tolerance)
    if difference is not None:
        raise GoldenExampleFailed(f"The golden example {number} does not hold on this backbone: {difference}.")
