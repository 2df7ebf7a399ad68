"""The slots' block tables, step by step."""

from __future__ import annotations

import pytest
import torch

from app.contract.info import NO_BLOCK, KVCacheGroup
from app.contract.step import StepPlan
from app.runner.errors import RunnerError
from app.runner.input_batch import InputBatch
from tests.fakes import kv_group
from tests.runner.steps import GREEDY, row_of, slot_of, step_of

LAST = torch.tensor([100, 101, 102])


@pytest.fixture
def batch() -> InputBatch:
    return batch_of(kv_group("full"))


def batch_of(*groups: KVCacheGroup) -> InputBatch:
    return InputBatch(
        groups,
        num_slots=3,
        max_tokens=64,
        max_logit_rows=8,
        max_model_len=48,
        block_size=4,
        device=torch.device("cpu"),
    )


def mapping(batch: InputBatch, step: StepPlan) -> list[int]:
    """Where the step's tokens are written."""
    inputs = batch.prepare(step)
    batch.expand(inputs, LAST)
    return inputs.metas[0].slot_mapping.tolist()


def test_a_step_that_fails_leaves_the_slots_that_were_not_in_it(batch: InputBatch) -> None:
    bound = [slot_of(slot, [1] * 4, GREEDY) for slot in range(3)]
    prompts = [row_of(slot, 0, [1] * 4, blocks=blocks) for slot, blocks in enumerate(([5, 9], [7], [8]))]
    assert mapping(batch, step_of(prompts, bound))[::4] == [20, 28, 32]
    assert mapping(batch, step_of([row_of(0, 4, None)])) == [36]
    with pytest.raises(RunnerError, match="slot 1 was given 15 blocks, its table holds 12"):
        batch.fill(step_of([row_of(2, 4, None, blocks=[40]), row_of(1, 4, None, blocks=list(range(30, 44)))]))
    assert mapping(batch, step_of([row_of(0, 5, None)])) == [37]


def test_a_slot_bound_anew_has_nothing_of_what_it_held(batch: InputBatch) -> None:
    bind = [slot_of(2, [1], GREEDY)]
    assert mapping(batch, step_of([row_of(2, 0, [1], blocks=[3, 4])], bind)) == [12]
    assert mapping(batch, step_of([row_of(2, 0, [1], blocks=[6])], bind)) == [24]
    with pytest.raises(RunnerError, match="beyond the blocks"):
        batch.fill(step_of([row_of(2, 4, None)]))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (StepPlan(step=0, slots=[], rows=[row_of(0, 0, [1])], num_tokens=2, num_logit_rows=1), "another number"),
        (step_of([row_of(0, 0, [1] * 65)]), "the buffers hold 1 to 64"),
        (step_of([row_of(0, 0, [1] * 9, num_logits=9)]), "9 logit rows, the buffers hold 8"),
    ],
)
def test_steps_that_do_not_fit(batch: InputBatch, step: StepPlan, message: str) -> None:
    with pytest.raises(RunnerError, match=message):
        batch.fill(step)


def test_each_group_has_tables_of_its_own() -> None:
    batch = batch_of(kv_group("full"), kv_group("sliding", window=4), kv_group("state"))
    bound = [slot_of(slot, [1] * 6, GREEDY) for slot in range(2)]
    blocks = [[[5, 9], [1, 2], [NO_BLOCK, 3]], [[7, 8], [3, 4], [NO_BLOCK, 4]]]
    rows = [row_of(slot, 0, [slot] * 6, groups=groups) for slot, groups in enumerate(blocks)]
    more = [row_of(0, 6, None, groups=[]), row_of(1, 6, [9, 9, 9], groups=[[10], [1], [6]])]
    for step, tables, first_slots in (
        (step_of(rows, bound), blocks, [[20, 28], [4, 12], None]),
        (step_of(more), [blocks[0], [[7, 8, 10], [3, 4, 1], [NO_BLOCK, 4, 6]]], [[38, 34], [10, 18], None]),
    ):
        inputs = batch.prepare(step)
        batch.expand(inputs, LAST)
        starts = inputs.metas[0].query_start_loc.tolist()
        for group, (meta, firsts) in enumerate(zip(inputs.metas, first_slots, strict=True)):
            for row, table in enumerate(tables):
                assert meta.block_tables[row, : len(table[group])].tolist() == table[group]
            if firsts is not None:
                assert [int(meta.slot_mapping[start]) for start in starts[:2]] == firsts
        assert inputs.tokens.positions[starts[1]] == step.rows[1].start
