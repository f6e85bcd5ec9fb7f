"""`turret inspect` and `turret convert`: with the project's own adapter_store, and without it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from turret_client.cli import app
from typer.testing import CliRunner, Result

pytest.importorskip("adapter_store.package")

HIDDEN, BOTTLENECK, LAYERS = 8, 4, 2
CONFIG = {
    "model_type": "bert",
    "hidden_size": HIDDEN,
    "name": "sst",
    "version": "adapters.1.3.0",
    "config": {"mh_adapter": False, "output_adapter": True, "reduction_factor": 2, "non_linearity": "relu", "original_ln_before": True},
}


def run(*args: object) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="turret")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """An AdapterHub folder of the older kind, with pickled weights."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    torch.save(
        {
            f"bert.encoder.layer.{layer}.output.adapters.sst.{name}": torch.ones(shape) * 0.5
            for layer in range(LAYERS)
            for name, shape in (
                ("adapter_down.0.weight", (BOTTLENECK, HIDDEN)),
                ("adapter_down.0.bias", (BOTTLENECK,)),
                ("adapter_up.weight", (HIDDEN, BOTTLENECK)),
                ("adapter_up.bias", (HIDDEN,)),
            )
        },
        folder / "pytorch_adapter.bin",
    )
    return folder


def test_convert_then_inspect(pickled: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("A small card.")
    target = tmp_path / "sst.safetensors"
    result = run("convert", pickled, target, "--license", "MIT", "--card", card)
    assert result.exit_code == 0, result.output
    assert "license\tMIT\n" in result.stdout
    assert "card\tA small card.\n" in result.stdout
    assert result.stderr.endswith(f"Next: turret push sst {target}\n")
    assert [file.name for file in tmp_path.glob("*sst*")] == ["sst.safetensors"]
    document = json.loads(run("inspect", target, "--json").stdout)
    assert document["parameters"] == LAYERS * (2 * HIDDEN * BOTTLENECK + HIDDEN + BOTTLENECK)
    assert (document["size"], document["manifest"]["license"]) == (target.stat().st_size, "MIT")
    assert f"digest\t{document['digest']}\n" in run("inspect", target).stdout


def test_convert_as_json(pickled: Path, tmp_path: Path) -> None:
    result = run("convert", pickled, tmp_path / "t.safetensors", "--json")
    document = json.loads(result.stdout)
    assert document["manifest"]["backbone"]["hidden_size"] == HIDDEN
    assert document["report"]
    assert document["digest"].startswith("sha256:")


def test_convert_for_a_named_backbone(pickled: Path, tmp_path: Path) -> None:
    config = tmp_path / "model" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}))
    assert run("convert", pickled, tmp_path / "t.safetensors", "--backbone", config.parent).exit_code == 0
    config.write_text(json.dumps({"model_type": "distilbert", "dim": 16, "n_layers": LAYERS}))
    result = run("convert", pickled, tmp_path / "u.safetensors", "--backbone", config)
    assert (result.exit_code, result.stderr.count("\n"), (tmp_path / "u.safetensors").exists()) == (1, 1, False)
    for text in ("{}", "[]", "no json", '{"model_type": "bert", "hidden_size": "x", "n_layer": 1}'):
        config.write_text(text)
        assert "does not tell a model's type" in run("convert", pickled, tmp_path / "u.safetensors", "--backbone", config).stderr
    assert "no config.json" in run("convert", pickled, tmp_path / "u.safetensors", "--backbone", tmp_path).stderr


def corrupt(folder: Path) -> None:
    (folder / "pytorch_adapter.bin").write_bytes(b"\x80\x04cos\nsystem\n.")


def strip(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize("harm", [corrupt, strip, empty])
def test_folders_that_cannot_be_converted(pickled: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    harm(pickled)
    (tmp_path / "t.safetensors").write_bytes(b"older")
    result = run("convert", pickled, tmp_path / "t.safetensors")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert (tmp_path / "t.safetensors").read_bytes() == b"older"


def test_arguments_that_do_not_fit(pickled: Path, tmp_path: Path) -> None:
    assert "is not a folder" in run("convert", tmp_path / "gone", tmp_path / "t").stderr
    assert "is a folder" in run("convert", pickled, tmp_path).stderr
    card = tmp_path / "card"
    card.write_bytes(b"\xff")
    assert "is not UTF-8" in run("convert", pickled, tmp_path / "t", "--card", card).stderr
    card.write_text("x" * 70_000)
    assert "cannot take this card" in run("convert", pickled, tmp_path / "t", "--card", card).stderr
    assert run("convert", pickled, tmp_path / "t", "--card", tmp_path / "gone").stderr.startswith("No such file or directory: ")


def test_files_that_are_no_package(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"not a package")
    for file in (tmp_path / "p", tmp_path / "gone", tmp_path):
        result = run("inspect", file)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)


def test_without_the_server_installed(pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "adapter_store"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "adapter_store", None)
    for args in (("inspect", tmp_path / "p"), ("convert", pickled, tmp_path / "t")):
        result = run(*args)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert "install turret-server" in result.stderr
