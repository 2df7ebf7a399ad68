"""What the tests of ops over latents share: sequences in pages, and float64 rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.types import AttentionMetadata, LayerLatents
from tests.kernels.util import poisoned, randn, rng


@dataclass
class LatentSequences:
    """Sequences in pages, and the same latents in plain sight (fp64, [len, C + R])."""

    pages: LayerLatents
    block_tables: Tensor
    latents: list[Tensor]

    def metadata(self, query_lens: Sequence[int], *, heads: int, rank: int) -> AttentionMetadata:
        """The last ``query_lens[r]`` tokens of each sequence as the step's queries."""
        seq_lens = [len(latents) for latents in self.latents]
        return AttentionMetadata(
            query_start_loc=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            block_tables=self.block_tables,
            slot_mapping=torch.zeros(sum(query_lens), dtype=torch.int64),
            max_query_len=max(query_lens),
            max_seq_len=max(seq_lens),
            split_workspace=new_split_workspace(len(seq_lens), heads, 1, rank, torch.device("cpu")).fill_(torch.nan),
        )

    def alone(self, row: int, length: int | None = None) -> LatentSequences:
        """One of the sequences, or its beginning."""
        return replace(self, block_tables=self.block_tables[row : row + 1], latents=[self.latents[row][:length]])


def latent_sequences(
    seq_lens: Sequence[int], width: int, *, block_size: int = 16, dtype: torch.dtype = torch.float32, order: int = 0
) -> LatentSequences:
    """Random sequences in scattered blocks; what must not be read is poisoned."""
    counts = [-(-length // block_size) for length in seq_lens]
    blocks = torch.randperm(sum(counts) + 3, generator=rng(order)).tolist()
    pages = poisoned(len(blocks), block_size, width, dtype=dtype)
    tables = torch.full((len(seq_lens), max(counts) + 2), 2**30, dtype=torch.int32)
    latents = []
    for row, (length, count) in enumerate(zip(seq_lens, counts, strict=True)):
        own = [blocks.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(own, dtype=torch.int32)
        values = randn(length, width, seed=100 + row).to(dtype)
        for position, latent in enumerate(values):
            pages[own[position // block_size], position % block_size] = latent
        latents.append(values.double())
    return LatentSequences(LayerLatents(pages), tables, latents)


def attend64(q: Tensor, sequences: LatentSequences, query_lens: Sequence[int], rank: int, scale: float) -> Tensor:
    """[T, H, C] in fp64, query by query."""
    results, token = [], 0
    for latents, count in zip(sequences.latents, query_lens, strict=True):
        for i in range(count):
            seen = latents[: len(latents) - count + i + 1]
            probabilities = (q[token].double() @ seen.t() * scale).softmax(-1)
            results.append(probabilities @ seen[:, :rank])
            token += 1
    return torch.stack(results)


def rotated64(x: Tensor, angles: Tensor, *, interleaved: bool) -> Tensor:
    """x [T, H, R] turned by ``angles`` [T, R / 2], by complex numbers."""
    pairs = x.double().unflatten(-1, (-1, 2)) if interleaved else x.double().unflatten(-1, (2, -1)).transpose(-1, -2)
    rotation = torch.polar(torch.ones_like(angles), angles)[:, None]
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * rotation)
    return (turned if interleaved else turned.transpose(-1, -2)).flatten(-2)
