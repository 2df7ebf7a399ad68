"""``latent_attention`` in every form against float64, and what a query's bits may hang on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from app.kernels.latent_attention import latent_attention
from app.kernels.types import LayerLatents
from tests.kernels.delta import IMPLEMENTATIONS, cases, native_isas, running
from tests.kernels.latents import LatentSequences, attend64, latent_sequences
from tests.kernels.util import TOLERANCE, poisoned, randn, relative_error

SCALE = 0.2


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def attend(q: Tensor, sequences: LatentSequences, query_lens: Sequence[int], rank: int) -> Tensor:
    tokens, heads, _ = q.shape
    out = poisoned(tokens, heads, rank, dtype=q.dtype)
    meta = sequences.metadata(query_lens, heads=heads, rank=rank)
    latent_attention(q, sequences.pages, meta, out, scale=SCALE)
    return out


Lengths = tuple[list[int], list[int]]
Shape = tuple[int, int, int]
ROWS: list[Lengths] = [
    ([1], [1]),
    ([15, 16, 17], [1, 1, 1]),
    ([63, 64, 130], [1, 1, 1]),
    ([20], [20]),
    ([100], [40]),
    ([100, 33, 5, 70], [1, 33, 2, 9]),
]
"""Lengths of sequences, and how many of their tokens are queries."""
SHAPES: list[Shape] = [(1, 16, 2), (6, 32, 8), (16, 70, 10)]
"""Heads, rank, and how much of a latent is rotated."""
INTERPRETED = [
    (ROWS[1], SHAPES[0]),
    (ROWS[3], SHAPES[0]),
    (ROWS[0], SHAPES[1]),
    (ROWS[1], SHAPES[1]),
    (([40], [20]), SHAPES[1]),
    (ROWS[2], SHAPES[2]),
    (([70, 18, 5], [1, 18, 2]), SHAPES[2]),
]


@cases("rows, shape", itertools.product(ROWS, SHAPES), INTERPRETED)
def test_against_fp64(implementation: str, rows: Lengths, shape: Shape) -> None:
    (seq_lens, query_lens), (heads, rank, rotary) = rows, shape
    sequences = latent_sequences(seq_lens, rank + rotary)
    q = randn(sum(query_lens), heads, rank + rotary, seed=7)
    expected = attend64(q, sequences, query_lens, rank, SCALE)
    assert relative_error(attend(q, sequences, query_lens, rank), expected) < TOLERANCE[torch.float32]


@cases(
    "dtype, block_size",
    itertools.product([torch.float32, torch.bfloat16], [8, 16, 48]),
    [(torch.float32, 8), (torch.bfloat16, 16), (torch.bfloat16, 48)],
)
def test_formats_and_sizes_of_blocks(implementation: str, dtype: torch.dtype, block_size: int) -> None:
    sequences = latent_sequences([90, 7, 40], 40, block_size=block_size, dtype=torch.bfloat16)
    q = randn(13, 5, 40, seed=7, dtype=dtype)
    expected = attend64(q, sequences, [1, 2, 10], 32, SCALE)
    assert relative_error(attend(q, sequences, [1, 2, 10], 32), expected) < TOLERANCE[dtype]


@cases("heads", [(50,), (128,)], [(50,)])
def test_many_heads(implementation: str, heads: int) -> None:
    sequences = latent_sequences([18, 3], 24)
    q = randn(4, heads, 24, seed=7)
    expected = attend64(q, sequences, [1, 3], 16, SCALE)
    assert relative_error(attend(q, sequences, [1, 3], 16), expected) < TOLERANCE[torch.float32]


def test_a_decode_hangs_on_its_row_alone(implementation: str) -> None:
    sequences = latent_sequences([130, 40, 9], 40)
    q = randn(3, 6, 40, seed=7)
    whole = attend(q, sequences, [1, 1, 1], 32)
    for row in range(3):
        assert torch.equal(attend(q[row : row + 1], sequences.alone(row), [1], 32), whole[row : row + 1])
    elsewhere = latent_sequences([130, 40, 9], 40, order=1)
    assert torch.equal(attend(q, elsewhere, [1, 1, 1], 32), whole)


def test_a_chunk_gives_the_bits_of_the_whole_prompt(implementation: str) -> None:
    ends = (20, 23, 36) if implementation == "triton" else (40, 43, 90)
    length = ends[-1]
    sequences, prompt = latent_sequences([length], 40), randn(length, 6, 40, seed=7)
    whole = attend(prompt, sequences, [length], 32)
    begin = 0
    for end in ends:
        chunk = attend(prompt[begin:end], sequences.alone(0, end), [end - begin], 32)
        if implementation == "reference":  # torch's product of several rows may sum in another order
            torch.testing.assert_close(chunk, whole[begin:end])
        else:
            assert torch.equal(chunk, whole[begin:end])
        begin = end


@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_natively_a_query_hangs_on_no_number_of_threads(threads: int) -> None:
    """Few rows share out their heads; a decode has the bits of the prompt that would compute it."""
    sequences, q = latent_sequences([150], 40), randn(150, 9, 40, seed=7)
    with running(native_isas()[0], threads=1):
        expected = attend(q, sequences, [150], 32)
    with running(native_isas()[0], threads):
        assert torch.equal(attend(q, sequences, [150], 32), expected)
        for position in (0, 63, 64, 149):
            one = attend(q[position : position + 1], sequences.alone(0, position + 1), [1], 32)
            assert torch.equal(one, expected[position : position + 1])


def test_scores_of_any_size(implementation: str) -> None:
    sequences = latent_sequences([100, 100], 24)
    q = torch.cat((randn(1, 4, 24, seed=7) * 1e4, torch.zeros(1, 4, 24)))
    expected = attend64(q, sequences, [1, 1], 16, SCALE)
    assert relative_error(attend(q, sequences, [1, 1], 16), expected) < 1e-5


def test_arguments_are_checked(implementation: str) -> None:
    sequences, q = latent_sequences([20], 24), randn(1, 2, 24)
    meta = sequences.metadata([1], heads=2, rank=16)
    with pytest.raises(ValueError, match="pages has shape"):
        latent_attention(q, LayerLatents(torch.empty(2, 16, 23)), meta, torch.empty(1, 2, 16), scale=1.0)
    with pytest.raises(ValueError, match="vectors of 25"):
        latent_attention(q, sequences.pages, meta, torch.empty(1, 2, 25), scale=1.0)
    with pytest.raises(ValueError, match="too narrow"):
        latent_attention(q, sequences.pages, replace(meta, max_seq_len=65), torch.empty(1, 2, 16), scale=1.0)
    if implementation in native_isas():
        wide = LayerLatents(torch.empty(2, 16, 1025))
        with pytest.raises(ValueError, match="up to 1024"):
            latent_attention(randn(1, 2, 1025), wide, meta, torch.empty(1, 2, 16), scale=1.0)
