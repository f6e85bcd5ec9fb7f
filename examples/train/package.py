"""Turns what train.py or fuse.py wrote into one package file: the AdapterHub folder, the card and the scores.

    python examples/train/package.py TASK --work work/TASK --out examples/adapters

Runs in the server's environment, not in the training one. The manifest carries the default backbone's fingerprint. The
members of a fusion are the packages of their names in --out, pinned by digest: publish those very files, or the fusion is
refused. The package is checked as the server checks an upload, and refused where it is larger than its kind may be.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adapter_store.importers import folder_files, import_folder, needed_members
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.package import open_package, read_package, write_package
from server.engine.backbone import load_backbone
from server.settings import DEFAULT_BACKBONE_ID, default_backbone

MAX_BYTES = 1_000_000
# A fusion of Houlsby adapters has three matrices of 384 x 384 at each of 12 sites: 10.6 MB in float16, whatever its members' size.
MAX_BYTES_FUSION = 11_000_000


def max_bytes(manifest: Manifest) -> int:
    """The size that a demo package of its kind may have."""
    return MAX_BYTES_FUSION if any(method.method == "fusion" for method in manifest.methods.values()) else MAX_BYTES


def the_backbone() -> Backbone:
    """The default backbone as a server knows it, with the fingerprint of its weights."""
    return load_backbone(default_backbone(), "cpu", name=DEFAULT_BACKBONE_ID).spec


def pins(files: dict[str, Path], folder: Path) -> dict[str, str]:
    """The members of a fusion folder as "name@sha256:...": the digests that a server gives the files of `folder`."""
    return {member: f"{member}@{open_package(folder / f'{member}.safetensors').digest}" for member in needed_members(files)}


def provenance(scores: dict[str, Any]) -> dict[str, str]:
    """What the manifest says of the training, as text."""
    main = scores["main"]
    columns = ("score", "majority", "probe")
    return {
        "metric": main,
        **{column: f"{scores[column][main]:.4f}" for column in columns},
        "test_examples": str(scores["sizes"]["test"]),
        "library": scores["library"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="the package's name")
    parser.add_argument("--work", type=Path, required=True, help="the folder that train.py or fuse.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder for NAME.safetensors, and of a fusion's members")
    options = parser.parse_args()

    files = folder_files(options.work / "adapter") | {"README.md": options.work / "card.md"}
    imported = import_folder(files, the_backbone(), members=pins(files, options.out))
    scores = json.loads((options.work / "scores.json").read_text(encoding="utf-8"))
    manifest = imported.manifest
    update = {"name": options.task, "source": manifest.source | provenance(scores)}
    data = write_package(manifest.model_copy(update=update), imported.tensors)
    package = read_package(data)
    limit = max_bytes(package.manifest)
    if package.size > limit:
        raise SystemExit(f"{options.task}: {package.size:,} bytes; a demo package of its kind has at most {limit:,}.")
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"{options.task}.safetensors"
    target.write_bytes(data)
    print(f"{target}: {package.size:,} bytes, {package.parameters:,} parameters, {package.digest}")
    for line in (*imported.report, *(f"warning: {warning}" for warning in imported.warnings)):
        print(f"  {line}")


if __name__ == "__main__":
    main()
