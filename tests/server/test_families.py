"""Every family: packed rows equal stock transformers, one padded-free row at a time, and prepacked linears their slow twin."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import CONFIGS, VOCABULARY, save_backbone
from transformers import AutoModel

from adapter_store.families import FAMILIES
from server.core import Outputs, Readout, Route, Sequence, pack
from server.engine.backbone import load_backbone
from server.engine.engine import Engine

TOLERANCE = 2e-5
LENGTHS = (1, 2, 3, 3, 9, 9, 9, 20, 31)


def rows_of(family: str, seed: int = 0) -> list[Sequence]:
    chance = random.Random(seed)
    rows = []
    for length in LENGTHS:
        ids = np.array([chance.randrange(4, VOCABULARY) for _ in range(length)])
        decoder = np.array([0, *(chance.randrange(4, VOCABULARY) for _ in range(chance.randrange(5)))])
        rows.append(
            Sequence(Route("base"), ids, np.zeros_like(ids), Readout("hidden"), decoder if FAMILIES[family].encoder_decoder else None)
        )
    chance.shuffle(rows)
    return rows


def run(engine: Engine, rows: list[Sequence]) -> list[Outputs]:
    batch, places = pack(rows)
    outputs = engine.run(batch)
    return [outputs[place] for place in places]


def test_the_configs_name_every_family() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_rows_equal_transformers(family: str, tmp_path: Path) -> None:
    folder = save_backbone(family, tmp_path / family)
    stock: Any = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    rows = rows_of(family)
    answers = run(Engine(load_backbone(str(folder), device="cpu")), rows)
    for row, answer in zip(rows, answers, strict=True):
        inputs = {"input_ids": torch.from_numpy(row.input_ids).unsqueeze(0)}
        if row.decoder_ids is not None:
            inputs["decoder_input_ids"] = torch.from_numpy(row.decoder_ids).unsqueeze(0)
        with torch.inference_mode():
            expected = stock(**inputs).last_hidden_state[0].numpy()
        np.testing.assert_allclose(answer["hidden"], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", CONFIGS)
def test_prepacked_linears_equal_their_slow_twin(family: str, tmp_path: Path) -> None:
    folder = str(save_backbone(family, tmp_path / family))
    rows = rows_of(family, seed=1)
    fast, slow = (run(Engine(load_backbone(folder, device="cpu", fast=fast)), rows) for fast in (True, False))
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_allclose(one["hidden"], other["hidden"], atol=TOLERANCE, rtol=TOLERANCE)
