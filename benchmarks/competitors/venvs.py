"""A virtual environment for each competitor, under .venvs/, from its complete list of pinned versions.

`python -m benchmarks.competitors.venvs [name ...]` makes those that are missing or whose list has changed; without names, all.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
VENVS = ROOT / ".venvs"
LAST_LINES = 15


class NotMade(Exception):
    """An environment that could not be made; the sentence ends with what pip said."""


def names() -> list[str]:
    """The competitors that have a list of requirements."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def python(name: str) -> Path:
    """The interpreter of a competitor's environment, which `make` makes."""
    return VENVS / name / "bin" / "python"


def versions(name: str) -> dict[str, str]:
    """What is pinned for a competitor: the version of every package."""
    pinned = (line.partition("==") for line in _requirements(name).read_text().splitlines() if "==" in line)
    return {package.strip(): version.strip() for package, _, version in pinned}


def stamp(name: str) -> str:
    """What an environment was made from: its list and the interpreter's version."""
    return hashlib.sha256(_requirements(name).read_bytes() + sys.version.encode()).hexdigest()


def is_made(name: str) -> bool:
    """Whether the environment is there and was made, to the end, from the list as it is now."""
    mark = VENVS / name / "stamp"
    return mark.is_file() and mark.read_text() == stamp(name)


def make(name: str) -> Path:
    """Makes a competitor's environment unless it is there; returns its interpreter. Raises `NotMade`.

    The list is a complete freeze, so that nothing is resolved anew. torch comes first and by itself, with what its build for this
    machine needs.
    """
    if is_made(name):
        return python(name)
    folder, listed = VENVS / name, _requirements(name)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    for torch in (line for line in listed.read_text().splitlines() if line.startswith("torch==")):
        _pip(name, torch)
    _pip(name, "--no-deps", "--requirement", str(listed))
    (folder / "stamp").write_text(stamp(name))
    return python(name)


def _requirements(name: str) -> Path:
    path = REQUIREMENTS / f"{name}.txt"
    if not path.is_file():
        raise NotMade(f"there is no competitor '{name}'; there are {', '.join(names())}")
    return path


def _pip(name: str, *what: str) -> None:
    command = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-LAST_LINES:])
        raise NotMade(f"the environment '{name}' could not be made: pip install {' '.join(what)} failed:\n{said}")


def main() -> None:
    """Makes the environments that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names())}")
    for name in parser.parse_args().names or names():
        print(f"{name}: {'there' if is_made(name) else 'being made'}", flush=True)
        try:
            make(name)
        except NotMade as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
