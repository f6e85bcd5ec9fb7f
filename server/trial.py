"""Golden examples: what a package must answer before it is published, tried by a real forward on this backbone.

The package is not in the store yet: while it is tried, its file and its manifest are staged here, where the loader and the router look first.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapter_store.errors import InvalidPackage
from adapter_store.golden import Example, differences
from adapter_store.manifest import Manifest
from adapter_store.package import Package, sentence
from server.core import Terms
from server.errors import ApiError
from server.inference import Answer, Ask, Inference
from server.residency import Residency
from server.router import Router
from server.tasks.inputs import is_batch, sources
from server.tasks.parameters import Parameters


class GoldenExampleFailed(InvalidPackage):
    """A package whose golden examples come out otherwise than its manifest says."""


@dataclass(frozen=True, slots=True)
class Staging:
    """Files of packages on their way into the store, by digest."""

    paths: dict[str, Path] = field(default_factory=dict)

    @contextmanager
    def holding(self, digest: str, path: Path) -> Iterator[None]:
        """A package's file for as long as it is tried. Two uploads of the same bytes may be tried at once."""
        self.paths[digest] = path
        try:
            yield
        finally:
            if self.paths.get(digest) is path:
                del self.paths[digest]


@dataclass(frozen=True, slots=True)
class Trial:
    """Tries packages. Called on a worker thread while `loop` turns."""

    router: Router
    residency: Residency
    inference: Inference
    staging: Staging
    loop: asyncio.AbstractEventLoop

    def __call__(self, name: str, package: Package, path: Path) -> None:
        """Raises GoldenExampleFailed, with one sentence, for the first example that does not hold."""
        if package.manifest.examples:
            asyncio.run_coroutine_threadsafe(self._try(name, package, path), self.loop).result()

    async def _try(self, name: str, package: Package, path: Path) -> None:
        asks, owners = _asks(name, package.manifest)
        with self.staging.holding(package.digest, path):
            route = self.router.candidate(name, package.manifest, package.digest)
            try:
                answers, _ = await self.inference.answer([Ask(**ask, route=route) for ask in asks], Terms())
            finally:
                await self.residency.drop(package.digest)
        for number, example in enumerate(package.manifest.examples):
            _check(number, example, [answer for answer, owner in zip(answers, owners, strict=True) if owner == number])


def _asks(name: str, manifest: Manifest) -> tuple[list[dict[str, Any]], list[int]]:
    """The asks of all examples, and which example each belongs to."""
    asks: list[dict[str, Any]] = []
    owners: list[int] = []
    for number, example in enumerate(manifest.examples):
        try:
            parameters = Parameters.model_validate(example.parameters)
            for source in sources(example.inputs, f"examples[{number}].inputs"):
                asks.append({"model": name, "source": source, "parameters": parameters, "output": example.output})
                owners.append(number)
        except ValidationError as error:
            raise InvalidPackage(f"The golden example {number} has parameters that are not valid: {sentence(error)}") from None
        except ApiError as error:
            raise InvalidPackage(f"The golden example {number} is not valid: {error}") from None
    return asks, owners


def _check(number: int, example: Example, answers: list[Answer]) -> None:
    fault = next((answer.error for answer in answers if answer.error is not None), None)
    if fault is not None:
        raise GoldenExampleFailed(f"The golden example {number} cannot be answered: {fault}")
    values = [answer.value for answer in answers]
    difference = differences(example.expected, values if is_batch(example.inputs) else values[0], example.tolerance)
    if difference is not None:
        raise GoldenExampleFailed(f"The golden example {number} does not hold on this backbone: {difference}.")


