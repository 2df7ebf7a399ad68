"""``expand_rows`` on a GPU: a program a row, so that a decode step's graph begins with what the host has sent.

Held against its reference in Triton's interpreter and on an H200; compiled ahead of time for sm_80 to sm_90.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, wait_for_inputs
from app.kernels.types import AttentionMetadata, StepRows, StepTokens

_BLOCK = 256


@triton.jit
def _blocks_at(feed, table, places, inside, held, fresh, num_fresh):
    """(blocks at places of a row's table, which of them are new): new ones are not read back from it."""
    new = inside & (places >= held) & (places < held + num_fresh)
    old_blocks = tl.load(table + places, mask=inside & (new == 0), other=0)
    return tl.where(new, tl.load(feed + fresh + places - held, mask=new, other=0), old_blocks), new


@triton.jit
def _expand_rows(
    slots, carried, table_lens, new_block_loc, logit_start_loc, feed, query_start_loc, seq_lens,
    last_token, tables, token_ids, positions, logit_indices, block_tables, slot_mapping,
    table_width,
    B: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    table = tables + slot * table_width
    held, fresh = tl.load(table_lens + row), tl.load(new_block_loc + row)
    num_fresh = tl.load(new_block_loc + row + 1) - fresh
    length = tl.load(seq_lens + row)
    blocks = tl.cdiv(length, B)
    lanes = tl.arange(0, BLOCK)
    for first in range(0, tl.maximum(blocks, held + num_fresh), BLOCK):
        places = first + lanes
        inside = places < tl.maximum(blocks, held + num_fresh)
        values, new = _blocks_at(feed, table, places, inside, held, fresh, num_fresh)
        tl.store(table + places, values, mask=new)
        tl.store(block_tables + row * table_width + places, values, mask=places < blocks)
    begin, end = tl.load(query_start_loc + row), tl.load(query_start_loc + row + 1)
    sampled = tl.load(last_token + slot)
    carries = tl.load(carried + row) != 0
    for first in range(begin, end, BLOCK):
        tokens = first + lanes
        inside = tokens < end
        place = length - end + tokens
        values, _ = _blocks_at(feed, table, place // B, inside, held, fresh, num_fresh)
        tl.store(slot_mapping + tokens, values.to(tl.int64) * B + place % B, mask=inside)
        if token_ids is not None:
            tl.store(positions + tokens, place.to(tl.int64), mask=inside)
            given = tl.load(feed + tokens, mask=inside, other=0).to(tl.int64)
            tl.store(token_ids + tokens, tl.where(carries, sampled, given), mask=inside)
    if token_ids is not None:
        wanted, last = tl.load(logit_start_loc + row), tl.load(logit_start_loc + row + 1)
        for first in range(wanted, last, BLOCK):
            lines = first + lanes
            tl.store(logit_indices + lines, (end - last + lines).to(tl.int64), mask=lines < last)


def expand_rows_triton(
    rows: StepRows,
    tables_SW: Tensor,
    last_token_S: Tensor,
    out: StepTokens | None,
    meta: AttentionMetadata,
    block_size: int,
) -> None:
    """As the public ``expand_rows``."""
    launch(
        _expand_rows,
        (rows.slots.numel(),),
        {
            "slots": rows.slots,
            "carried": rows.carried,
            "table_lens": rows.table_lens,
            "new_block_loc": rows.new_block_loc,
            "logit_start_loc": rows.logit_start_loc,
            "feed": rows.feed,
            "query_start_loc": meta.query_start_loc,
            "seq_lens": meta.seq_lens,
            "last_token": last_token_S,
            "tables": tables_SW,
            "token_ids": out.token_ids if out else None,
            "positions": out.positions if out else None,
            "logit_indices": out.logit_indices if out else None,
            "block_tables": meta.block_tables,
            "slot_mapping": meta.slot_mapping,
            "table_width": tables_SW.shape[1],
        },
        {"B": block_size, "BLOCK": _BLOCK},
        num_warps=4,
        num_stages=1,
    )
