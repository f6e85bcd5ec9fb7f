"""Competitors' environments: made once for a list of versions, anew when it changes, and a clear sentence where pip fails."""

import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

from benchmarks.competitors import venvs


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A competitor "one" that pins torch and numpy; what pip is told is noted and not done."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "one.txt").write_text("numpy==2.4.6\ntorch==2.13.0\n")
    monkeypatch.setattr(venvs, "REQUIREMENTS", tmp_path / "requirements")
    monkeypatch.setattr(venvs, "VENVS", tmp_path / "venvs")
    told: list[list[str]] = []

    def create(folder: Path, with_pip: bool) -> None:
        folder.mkdir(parents=True)

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        told.append(command)
        failed = "torch==0" in command
        return subprocess.CompletedProcess(command, int(failed), "first\nno such version" if failed else "")

    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(subprocess, "run", run)
    return told


def test_torch_comes_first_and_alone_then_the_whole_list(calls: list[list[str]], tmp_path: Path) -> None:
    assert venvs.names() == ["one"]
    assert venvs.versions("one") == {"numpy": "2.4.6", "torch": "2.13.0"}
    assert not venvs.is_made("one")
    assert venvs.make("one") == tmp_path / "venvs" / "one" / "bin" / "python"
    assert venvs.is_made("one")
    assert [command[-1] for command in calls] == ["torch==2.13.0", str(tmp_path / "requirements" / "one.txt")]
    assert "--no-deps" not in calls[0]
    assert "--no-deps" in calls[1]


def test_it_is_made_again_only_when_the_list_changes(calls: list[list[str]], tmp_path: Path) -> None:
    venvs.make("one")
    (tmp_path / "venvs" / "one" / "left over").touch()
    venvs.make("one")
    assert len(calls) == 2
    (tmp_path / "requirements" / "one.txt").write_text("numpy==2.4.5\n")
    assert not venvs.is_made("one")
    venvs.make("one")
    assert len(calls) == 3
    assert not (tmp_path / "venvs" / "one" / "left over").exists()


def test_where_pip_fails_the_environment_does_not_count_as_made(calls: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "requirements" / "one.txt").write_text("torch==0\n")
    with pytest.raises(venvs.NotMade, match=r"'one' could not be made: pip install torch==0 failed:\nfirst\nno such version"):
        venvs.make("one")
    assert not venvs.is_made("one")


def test_a_competitor_that_is_not_there_is_named(calls: list[list[str]]) -> None:
    with pytest.raises(venvs.NotMade, match="no competitor 'two'; there are one"):
        venvs.make("two")


def test_every_list_pins_every_package() -> None:
    for path in venvs.REQUIREMENTS.glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert lines, path.name
        assert not [line for line in lines if "==" not in line or " @ " in line], path.name
        assert not [line for line in lines if line.startswith("torch==") and "+" in line], path.name
