"""Folders sent as forms: what is taken, and what is refused without a trace."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import MAX_UPLOAD, error, folder_form, push, serving
from safetensors.numpy import load_file, save
from starlette.testclient import TestClient

FOLDER = Path("bert_pfeiffer_cls/safetensors/adapters/sst")
Form = list[tuple[str, tuple[str, bytes]]]


@pytest.fixture(scope="module")
def form(golden: Path) -> Form:
    return folder_form(golden / FOLDER)


def with_files(form: Form, **changes: bytes | None) -> Form:
    """The form with files replaced, added, or (None) left out; `__` stands for a dot."""
    contents = dict(dict(form_items(form)), **{name.replace("__", "."): data for name, data in changes.items()})
    return [("files", (name, data)) for name, data in contents.items() if data is not None]


def form_items(form: Form) -> list[tuple[str, bytes]]:
    return [file for _, file in form]


def config(golden: Path, **changes: Any) -> bytes:
    value = json.loads((golden / FOLDER / "adapter_config.json").read_text())
    value["config"] |= changes
    return json.dumps(value).encode()


def test_a_folder_is_published_with_a_report(golden: Path, form: Form, tmp_path: Path) -> None:
    with serving(golden / "bert_pfeiffer_cls" / "backbone", tmp_path / "store") as client:
        card = b"---\nlicense: mit\n---\n# Card\n"
        files = with_files(form, README__md=card, optimizer__pt=b"junk")
        answer = client.put("/v1/adapters/sst", files=files, params={"alias": "prod"})
        assert answer.status_code == 201, answer.text
        published = answer.json()
        assert (published["license"], published["aliases"]) == ("mit", {"latest": 1, "prod": 1})
        assert any("optimizer.pt" in line for line in published["imported"])
        manifest = client.get("/v1/adapters/sst").json()["manifest"]
        assert manifest["card"] == card.decode()
        assert manifest["backbone"]["fingerprint"] == client.app.state.services.backbone.fingerprint
        assert client.put("/v1/adapters/sst", files=files).status_code == 200
        without_head = with_files(form, head_config__json=None, model_head__safetensors=None)
        headless = client.put("/v1/adapters/bare", files=without_head)
        assert (headless.status_code, headless.json()["task"]) == (201, None)
        head_alone = with_files(form, adapter_config__json=None, adapter__safetensors=None)
        assert client.put("/v1/adapters/head", files=head_alone).json()["methods"] == []
        body = {"model": ["sst", "bare#head", "base#head"], "inputs": "t1 t2 t3", "output": "logits"}
        whole, joined, bare = (np.array(r["output"]["data"]) for r in client.post("/v1/predict", json=body).json()["results"])
        np.testing.assert_allclose(whole, joined, atol=1e-6)
        assert np.abs(whole - bare).max() > 1e-3


def test_the_downloaded_package_is_taken_elsewhere(golden: Path, tmp_path: Path) -> None:
    backbone = golden / "bert_pfeiffer_cls" / "backbone"
    with serving(backbone, tmp_path / "one") as one, serving(backbone, tmp_path / "two") as two:
        published = push(one, "sst", golden / FOLDER)
        package = one.get("/v1/adapters/sst/versions/1/package").content
        assert two.put("/v1/adapters/copy", content=package).json()["digest"] == published["digest"]


def test_another_backbones_pooler(golden: Path, tmp_path: Path) -> None:
    """A head that reads the pooler is refused where the checkpoint has none."""
    folder = golden / "bert_multilabel_pooler" / "safetensors" / "adapters" / "toxic"
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    source = golden / "bert_multilabel_pooler" / "backbone"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (backbone / name).write_bytes((source / name).read_bytes())
    weights = {name: array for name, array in load_file(source / "model.safetensors").items() if "pooler" not in name}
    (backbone / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    with serving(backbone, tmp_path / "store") as client:
        fault = error(client.put("/v1/adapters/toxic", files=folder_form(folder)), 422, "wrong_backbone")
        assert "pooler" in fault["message"]


# Forms that are refused


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize(
    "name",
    [
        "../adapter_config.json",
        "/etc/passwd",
        "a/b.json",
        "..",
        ".hidden",
        "a\\b",
        "..\\adapter.safetensors",
        "x" * 129,
        "nul\0l",
        "ü.json",
    ],
)
def test_a_file_name_that_is_refused(empty: TestClient, form: Form, name: str) -> None:
    error(empty.put("/v1/adapters/hostile", files=[*form, ("files", (name, b"{}"))]), 422, "invalid_file_name")


@pytest.mark.usefixtures("_nothing_left")
def test_two_files_of_one_name(empty: TestClient, form: Form) -> None:
    error(empty.put("/v1/adapters/hostile", files=[*form, form[0]]), 422, "duplicate_file")


@pytest.mark.usefixtures("_nothing_left")
def test_forms_that_are_none(empty: TestClient, form: Form) -> None:
    url = "/v1/adapters/hostile"
    error(empty.put(url, content=b"garbage", headers={"content-type": "multipart/form-data"}), 400, "invalid_form")
    error(empty.put(url, content=b"garbage", headers={"content-type": "multipart/form-data; boundary=x"}), 400, "invalid_form")
    error(empty.put(url, files={"files": (None, "text")}), 400, "empty_form")
    error(empty.put(url, files=[("files", (f"{i}.json", b"{}")) for i in range(300)]), 400, "invalid_form")
    error(empty.put(url, files=[*form, ("files", ("big.bin", b"\0" * MAX_UPLOAD))]), 413, "body_too_large")


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize(
    "changes",
    [
        {"adapter__safetensors": b"garbage"},
        {"adapter__safetensors": b""},
        {"adapter_config__json": b"{"},
        {"adapter_config__json": b"[1]"},
        {"adapter_config__json": b"[" * 100_000},
        {"adapter_config__json": None},
        {"adapter__safetensors": None},
        {"head_config__json": b"null"},
        {"model_head__safetensors": save({"heads.sst.1.weight": np.zeros((3, 3), dtype="<f4")})},
        {"adapter__safetensors": None, "pytorch_adapter__bin": b"\x80\x02."},
        {"adapter_config__json": b'{"config": {"architecture": "lora", "r": 8, "alpha": 8}}'},
        {"adapter_model__safetensors": b""},
    ],
    ids=lambda changes: "-".join(f"{name}={str(data)[:12]}" for name, data in changes.items()),
)
def test_a_folder_that_is_refused(empty: TestClient, form: Form, changes: dict[str, bytes | None]) -> None:
    answer = empty.put("/v1/adapters/hostile", files=with_files(form, **changes))
    error(answer, 422, answer.json()["error"]["code"])
    assert answer.json()["error"]["code"] in ("invalid_package", "unsupported_method")


@pytest.mark.usefixtures("_nothing_left")
def test_a_folder_of_pickles_is_refused_with_advice(empty: TestClient, golden: Path) -> None:
    fault = error(
        empty.put("/v1/adapters/hostile", files=folder_form(golden / "bert_pfeiffer_cls/bin/adapters/sst")), 422, "invalid_package"
    )
    assert "convert" in fault["message"]


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(empty: TestClient, golden: Path, form: Form, value: float) -> None:
    weights = load_file(golden / FOLDER / "adapter.safetensors")
    next(iter(weights.values())).flat[0] = value
    error(empty.put("/v1/adapters/hostile", files=with_files(form, adapter__safetensors=save(weights))), 422, "invalid_package")


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize(
    "change",
    [
        {"reduction_factor": 0},
        {"reduction_factor": 1e-9},
        {"reduction_factor": 3},
        {"non_linearity": "magic"},
        {"phm_layer": True},
        {"mh_adapter": True},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_its_weights(empty: TestClient, golden: Path, form: Form, change: dict[str, Any]) -> None:
    answer = empty.put("/v1/adapters/hostile", files=with_files(form, adapter_config__json=config(golden, **change)))
    assert answer.status_code == 422, answer.text
    assert "\n" not in answer.json()["error"]["message"]
