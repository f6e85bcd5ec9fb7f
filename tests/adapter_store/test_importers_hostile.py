"""Folders that cost much, or say what breaks a sentence: what was found by attacking the importers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import refused, write_adapter
from safetensors.numpy import save_file
from samples import check_sentence

from adapter_store.composition import MAX_WEIGHT, parse
from adapter_store.errors import InvalidName, InvalidPackage, StoreError
from adapter_store.importers.backbones import backbone_of
from adapter_store.importers.folder import read_card
from adapter_store.methods import Backbone, LoRA, Norms, activation
from adapter_store.names import one_line
from adapter_store.tensorfile import MAX_DIGITS, MAX_NESTING, parse_json

T5 = {"model_type": "t5", "d_model": 8, "num_layers": 2, "num_heads": 2, "d_kv": 4, "d_ff": 8}


def card(folder: Path, front_matter: str) -> str:
    path = folder / "README.md"
    path.write_text(f"---\n{front_matter}\n---\n# Card\n")
    return read_card({"README.md": path}, [])[1]


def test_the_license_of_a_long_card_is_found_in_one_pass(tmp_path: Path) -> None:
    """An expression that steps back ran for more than 25 seconds over 200,000 spaces between two words."""
    assert card(tmp_path, "license: mit" + " " * 60_000 + "x").startswith("mit ")
    assert card(tmp_path, "tags:\n- a\nlicense:\nlicense:   'apache-2.0' \r") == "apache-2.0"
    assert card(tmp_path, "license_name: other\n license: indented") == ""


@pytest.mark.parametrize(
    "change", [{"num_heads": "1", "d_kv": 10**9}, {"num_heads": [0], "d_kv": 10**9}, {"num_layers": "1"}, {"d_ff": 8.0}, {"d_model": None}]
)
def test_numbers_of_a_models_config_are_whole_numbers(change: dict[str, Any]) -> None:
    """A text times a number is a text of that many bytes."""
    assert backbone_of(T5).linears["q"] == (8, 8)
    try:
        assert not backbone_of(T5 | change).linears
    except InvalidPackage as error:
        check_sentence(error)


@pytest.mark.parametrize(
    "text",
    [
        "1e999",
        "-1e999",
        '{"a": [1e400]}',
        "1" * (MAX_DIGITS + 1),
        "-" + "1" * MAX_DIGITS,
        "[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1),
    ],
)
def test_json_that_is_not_read(text: str) -> None:
    with pytest.raises(InvalidPackage, match="The text is not sound JSON") as caught:
        parse_json(text, "The text")
    check_sentence(caught.value)


def test_json_that_is_read() -> None:
    deep = "[" * MAX_NESTING + "]" * MAX_NESTING
    assert json.dumps(parse_json(deep, "The text")) == deep
    assert parse_json("1" * MAX_DIGITS, "The text") == int("1" * MAX_DIGITS)
    assert parse_json('{"a": [1.5, -2, "1e999"]}', "The text") == {"a": [1.5, -2, "1e999"]}
    with pytest.raises(InvalidPackage, match="has 4 commas and brackets; at most 3"):
        parse_json("[1, 2, 3, 4]", "The text", 3)


def test_weights_that_would_overflow_a_sum() -> None:
    assert parse(f"average(a:{MAX_WEIGHT}, b)").root is not None
    for weight in ("1e308", "1e10", "inf", "nan", "-1"):
        with pytest.raises(InvalidName):
            parse(f"average(a:{weight}, b:{weight})")


@pytest.mark.parametrize("text", ["a\nb", "a\u2028b", "a\ud800b", "a\x1b[31mb", "a\u202eb"])
def test_sentences_are_one_printable_line(text: str) -> None:
    assert one_line(text, 80).isprintable()
    assert one_line("x" * 100, 80) == "x" * 80
    linears: dict[str, Any] = {"model_type": "bert", "hidden_size": 8, "num_layers": 2, "linears": {text: (1, 1)}}
    faults: list[Any] = [
        lambda: activation(text),
        lambda: LoRA(modules=(text,), rank=1, scaling=1.0),
        lambda: LoRA(modules=("layers.0.q",), rank=1, scaling=1.0, ranks={text: 1}),
        lambda: Norms(modules=(text,)),
        lambda: Backbone.model_validate(linears),
        lambda: parse_json(f'{{"{text}": 1, "{text}": 1}}'.replace("\n", "\\n").replace("\x1b", "\\u001b"), "The text"),
    ]
    for fault in faults:
        with pytest.raises((ValueError, StoreError)) as caught:
            fault()
        assert text not in str(caught.value)


def test_a_union_of_very_many(tmp_path: Path) -> None:
    write_adapter(tmp_path, "bert", {"architecture": "union", "configs": ["pfeiffer"] * 33}, {})
    refused(tmp_path, InvalidPackage, "a union has a list of 1 to 32")


def test_a_t5_prefix_of_no_width(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING", "num_layers": 1 << 40}))
    save_file({"prompt_embeddings": np.zeros((4, 0), "<f4")}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, InvalidPackage, "[4, 0]", backbone=backbone_of(T5))
