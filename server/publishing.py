"""Uploads: a body on disk becomes a published package. Streams, checks everything, then commits; leaves nothing behind.

The steps are blocking and run on a worker thread.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter_store.composition import parse
from adapter_store.errors import StoreError, WrongBackbone
from adapter_store.importers import import_to_file
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.store import Published, Store
from server.router import stacked


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A publish and what an importer remarked."""

    published: Published
    warnings: tuple[str, ...] = ()
    report: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes to one store for one backbone. `has_pooler`: whether the backbone's checkpoint carries pooler weights."""

    store: Store
    backbone: Backbone
    has_pooler: bool

    def package(self, path: Path, name: str, alias: str | None, only_new: bool) -> Uploaded:
        """Publishes a package file."""
        return Uploaded(self.store.publish(path, name, self.backbone, alias, only_new, self.check))

    def folder(self, files: Mapping[str, Path], name: str, alias: str | None, only_new: bool) -> Uploaded:
        """Imports the files of an adapter's folder and publishes the package."""
        with tempfile.TemporaryDirectory(prefix="turret-import-") as folder:
            target = Path(folder) / "package.safetensors"
            imported = import_to_file(files, self.backbone, target)
            published = self.store.publish(target, name, self.backbone, alias, only_new, self.check)
            return Uploaded(published, imported.warnings, imported.report)

    def all_of(self, folder: Path) -> list[Uploaded]:
        """Publishes every package file of a folder under its file's name. Raises StoreError for the first that is refused."""
        if not folder.is_dir():
            raise StoreError(f"There is no folder '{folder}' to publish packages from.")
        return [self.package(path, path.stem, None, False) for path in sorted(folder.glob("*.safetensors"))]

    def check(self, manifest: Manifest) -> None:
        """Raises UnsupportedMethod for a composition that is not served, WrongBackbone for what this backbone has not."""
        if manifest.composition is not None:
            stacked(parse(manifest.composition).root)
        if manifest.head is not None and manifest.head.use_pooler and not self.has_pooler:
            raise WrongBackbone(
                "The package's head reads the backbone's pooler, but the checkpoint of the backbone has no pooler weights: "
                "serve a checkpoint that has them."
            )
