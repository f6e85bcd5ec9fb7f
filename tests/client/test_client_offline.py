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
    linears = {"model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": 20}
    config.write_text(json.dumps(linears))
    assert run("convert", pickled, tmp_path / "v.safetensors", "--backbone", config).exit_code == 0
    for text in ("{}", "[]", "no json", '{"model_type": "bert", "hidden_size": "x", "n_layer": 1}'):
        config.write_text(text)
        assert "does not tell a model's type" in run("convert", pickled, tmp_path / "u.safetensors", "--backbone", config).stderr
    assert "no config.json" in run("convert", pickled, tmp_path / "u.safetensors", "--backbone", tmp_path).stderr


@pytest.fixture
def setup(pickled: Path, tmp_path: Path) -> Path:
    """A setup of one adapter, with pickled weights."""
    folder = tmp_path / "setup"
    folder.mkdir()
    pickled.rename(folder / "sst")
    root = {"type": "Stack", "children": [{"type": "single", "children": ["sst"]}]}
    (folder / "adapter_setup.json").write_text(json.dumps({"adapter_setup": root, "head_setup": None}))
    return folder


def test_a_setup_becomes_a_folder_without_pickles(setup: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert run("convert", setup, target).stdout == f"{target}\t3 files\n"
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*.*")) == [
        "adapter_setup.json",
        "sst/adapter.safetensors",
        "sst/adapter_config.json",
    ]
    assert [path.name for path in tmp_path.glob(".turret*")] == []
    again = run("convert", setup, target)
    assert (again.exit_code, "is there already" in again.stderr) == (1, True)
    plain = run("convert", target, tmp_path / "two")
    assert (plain.exit_code, "push it to a server" in plain.stderr) == (1, True)
    document = json.loads(run("convert", setup, tmp_path / "three", "--json").stdout)
    assert document["files"] == ["adapter_setup.json", "sst/adapter.safetensors", "sst/adapter_config.json"]


@pytest.fixture
def fusion(tmp_path: Path) -> Path:
    """A fusion of two adapters, with pickled weights."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "fusion"
    folder.mkdir()
    config = {"model_type": "bert", "hidden_size": HIDDEN, "name": "a,b", "adapter_names": ["a", "b"], "config": "static"}
    (folder / "adapter_fusion_config.json").write_text(json.dumps(config))
    weights = {
        f"bert.encoder.layer.0.output.adapter_fusion_layer.a,b.{part}.{kind}": torch.ones(shape)
        for part in ("query", "key")
        for kind, shape in (("weight", (HIDDEN, HIDDEN)), ("bias", (HIDDEN,)))
    }
    torch.save(weights, folder / "pytorch_model_adapter_fusion.bin")
    return folder


def test_a_fusion_is_one_package_where_its_members_are_pinned(fusion: Path, tmp_path: Path) -> None:
    pin = "sha256:" + "0" * 64
    result = run("convert", fusion, tmp_path / "f.safetensors", "--member", f"a=acme/a@{pin}", "--member", f"b=b@{pin}")
    assert result.exit_code == 0, result.output
    assert f"composition\tfuse[self](acme/a@{pin}, b@{pin})\n" in result.stdout
    unpinned = run("convert", fusion, tmp_path / "g.safetensors", "--member", "a=acme/a", "--member", "b=b@2")
    assert (unpinned.exit_code, "pinned by digest" in unpinned.stderr) == (1, True)
    assert run("convert", fusion, tmp_path / "folder").stdout == f"{tmp_path / 'folder'}\t2 files\n"


def test_a_checkpoint_is_compared_with_the_backbones_weights(tmp_path: Path, shared: Path) -> None:
    case = shared / "golden" / "orig_compacter_t5"
    result = run("convert", case / "compacter_checkpoint", tmp_path / "t.safetensors", "--backbone", case / "backbone")
    assert (result.exit_code, "Warning" in result.stderr) == (0, False)
    assert "compared 50 tensors" in result.stdout
    alone = run("convert", case / "compacter_checkpoint", tmp_path / "u.safetensors", "--backbone", case / "backbone" / "config.json")
    assert "could not be compared" in alone.stderr


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
