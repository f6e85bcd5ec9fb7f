"""The README's tree has a line for every file, and no other."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = ("adapter_store/", "server/", "clients/python/src/", "benchmarks/", "examples/")


def tree() -> set[str]:
    """The paths that the tree names."""
    block = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    paths: set[str] = set()
    folder = ""
    for line in block.splitlines():
        match = re.match(r"(\s*)(\S+)", line)
        if match is None:
            continue
        if not match[1]:
            folder = match[2] if match[2].endswith("/") else ""
        paths.add(match[2] if not match[1] else folder + match[2])
    return paths


def test_every_module_has_a_line_and_every_line_a_file() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = {
        path for path in listed.stdout.split() if path.startswith(SHOWN) and not path.endswith("__init__.py") and (ROOT / path).exists()
    }
    shown = tree()
    assert not modules - shown, "modules without a line in the README"
    assert not {path for path in shown if not (ROOT / path).exists()}, "lines of the README without a file"
