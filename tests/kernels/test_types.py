from __future__ import annotations

import pytest
import torch

from app.kernels.types import ActFormat, LinearWeight, StepArena


def take_step(arena: StepArena, rows: int) -> list[torch.Tensor]:
    arena.begin(rows)
    act = arena.take_act(5, torch.float32, ActFormat.INT8)
    assert act.scale is not None
    return [arena.take(7, torch.float32), act.values, act.scale, arena.take(7, torch.bfloat16)]


def test_every_step_gets_the_same_addresses() -> None:
    arena = StepArena(8, torch.device("cpu"))
    first = take_step(arena, 8)
    held = arena.nbytes()
    for rows in (1, 5, 8):
        views = take_step(arena, rows)
        assert [view.data_ptr() for view in views] == [view.data_ptr() for view in first]
        assert [len(view) for view in views] == [rows] * 4
        assert all(view.is_contiguous() for view in views)
    assert arena.nbytes() == held == 8 * (7 * 4 + 5 + 4 + 7 * 2)


def test_flat_buffers_have_one_size_in_every_step() -> None:
    arena = StepArena(8, torch.device("cpu"), max_logit_rows=3)
    assert (arena.max_logit_rows, StepArena(8, torch.device("cpu")).max_logit_rows) == (3, 8)
    addresses = set()
    for rows in (1, 8):
        arena.begin(rows)
        flat = arena.take_flat(30, torch.float32)
        assert tuple(flat.shape) == (30,)
        addresses.add(flat.data_ptr())
    assert len(addresses) == 1
    assert arena.nbytes() == 120


def test_buffers_of_a_step_do_not_overlap() -> None:
    views = take_step(StepArena(4, torch.device("cpu")), 4)
    for value, view in enumerate(views):
        view.fill_(value)
    assert [view.unique().tolist() for view in views] == [[0], [1], [2], [3]]


def test_a_step_beyond_the_arena_is_refused() -> None:
    with pytest.raises(ValueError, match="a step of 5 rows does not fit an arena of 4"):
        StepArena(4, torch.device("cpu")).begin(5)


def test_another_order_of_buffers_is_refused() -> None:
    arena = StepArena(4, torch.device("cpu"))
    arena.begin(4)
    arena.take(3, torch.float32)
    for width, dtype in ((4, torch.float32), (3, torch.bfloat16)):
        arena.begin(2)
        with pytest.raises(ValueError, match="arena buffer 0"):
            arena.take(width, dtype)


def test_a_weight_asks_for_the_activations_it_multiplies() -> None:
    assert LinearWeight(torch.zeros(2, 2)).act_format is ActFormat.FLOAT
    assert LinearWeight(torch.zeros(2, 2, dtype=torch.int8), torch.ones(2)).act_format is ActFormat.INT8
