"""Turns what train.py wrote into one package file: the AdapterHub folder, the card and the scores.

    python examples/train/package.py TASK --work work/TASK --out examples/adapters

Runs in the server's environment (it uses `adapter_store`), not in the training one. The package is checked as the
server checks an upload, and refused above 1,000,000 bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adapter_store.importers import folder_files, import_folder
from adapter_store.package import read_package, write_package

MAX_BYTES = 1_000_000


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
    parser.add_argument("--work", type=Path, required=True, help="the folder that train.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder for NAME.safetensors")
    parser.add_argument("--fingerprint", help="sha256:... of the backbone, to refuse others of the same shape")
    options = parser.parse_args()

    imported = import_folder(folder_files(options.work / "adapter") | {"README.md": options.work / "card.md"})
    scores = json.loads((options.work / "scores.json").read_text(encoding="utf-8"))
    manifest = imported.manifest
    update = {"name": options.task, "source": manifest.source | provenance(scores)}
    if options.fingerprint:
        update["backbone"] = manifest.backbone.model_copy(update={"fingerprint": options.fingerprint})
    data = write_package(manifest.model_copy(update=update), imported.tensors)
    package = read_package(data)
    if package.size > MAX_BYTES:
        raise SystemExit(f"{options.task}: {package.size:,} bytes; a demo package has at most {MAX_BYTES:,}.")
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"{options.task}.safetensors"
    target.write_bytes(data)
    print(f"{target}: {package.size:,} bytes, {package.parameters:,} parameters, {package.digest}")
    for line in (*imported.report, *(f"warning: {warning}" for warning in imported.warnings)):
        print(f"  {line}")


if __name__ == "__main__":
    main()
