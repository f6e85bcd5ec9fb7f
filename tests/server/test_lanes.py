"""Lanes: a batch is split evenly and whole, its parts run at once, and what fails in one fails the batch after all have ended."""

import threading
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.backbone import load_backbone
from server.engine.lanes import UNEVEN, Lanes, split


def cost(lengths: list[int], places: list[int], hidden: int) -> float:
    return sum(lengths[place] * (1 + lengths[place] / (3 * hidden)) for place in places)


@given(st.lists(st.tuples(st.integers(1, 512), st.integers(0, 40)), min_size=1, max_size=80), st.integers(1, 8), st.integers(1, 300))
def test_a_split_is_whole_ordered_and_even(rows: list[tuple[int, int]], lanes: int, lane_tokens: int) -> None:
    lengths, keys = [length for length, _ in rows], [key for _, key in rows]
    parts = split(lengths, keys, 384, lanes, lane_tokens)
    assert sorted(place for part in parts for place in part) == list(range(len(rows)))
    assert all(part == sorted(part) and part for part in parts)
    assert len(parts) <= lanes
    if len(parts) > 1:
        assert sum(lengths) >= len(parts) * lane_tokens
        assert max(cost(lengths, part, 384) for part in parts) <= UNEVEN * cost(lengths, list(range(len(rows))), 384) / len(parts)
        homes = [{keys[place] for place in part} for part in parts]
        assert sum(map(len, homes)) == len(set(keys))


def test_equal_rows_fill_all_lanes_and_one_text_fills_one() -> None:
    assert [len(part) for part in split([50] * 12, range(12), 384, 4, 100)] == [3, 3, 3, 3]
    assert split([50] * 12, ["same"] * 12, 384, 4, 100) == [list(range(12))]
    assert len(split([50] * 3, range(3), 384, 4, 100)) == 1


@settings(deadline=None)
@given(st.integers(1, 4))
def test_lanes_run_at_once(parts: int) -> None:
    together = threading.Barrier(parts)

    def work(lane: int) -> tuple[int, int]:
        together.wait(10)  # breaks, and fails, if a lane waits for another
        return lane, torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        answers = Lanes(4).run(parts, work)
    finally:
        torch.set_num_threads(before)
    assert answers == [(lane, 4 // parts) for lane in range(parts)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_lane_that_fails_fails_the_batch_once_all_have_ended(failing: int) -> None:
    ended = []

    def work(lane: int) -> None:
        if lane == failing:
            raise ValueError(f"lane {lane} failed")
        threading.Event().wait(0.05)
        ended.append(lane)

    with pytest.raises(ValueError, match=f"lane {failing} failed"):
        Lanes(3).run(3, work)
    assert sorted(ended) == sorted({0, 1, 2} - {failing})


def test_lanes_share_every_tensor(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny.save_backbone(tmp_path)), device="cpu", lanes=3)
    models = [lane.model for lane in backbone.lanes]
    assert len({id(model) for model in models}) == 3
    held = [{tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())} for model in models]
    assert held[0] == held[1] == held[2]
