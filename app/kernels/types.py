"""Tensors that travel between kernels.

Activations (:mod:`app.kernels.acts`) and the arena that they come from (:mod:`app.kernels.arena`) are named here too.

Shape suffixes: T tokens of a step, R rows (sequences) of a step, L rows of logits, D model width, H query heads,
G key/value heads, E head width, V vocabulary, N / K output / input features of a linear layer, B block size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.kernels.acts import ACT_GROUP, Act, ActFormat, num_groups, num_scales
from app.kernels.arena import StepArena

__all__ = [
    "ACT_GROUP",
    "Act",
    "ActFormat",
    "AttentionMetadata",
    "BlockWeight",
    "ExpertsWeight",
    "LayerKVCache",
    "LayerState",
    "LinearWeight",
    "NativeWeight",
    "PackedExperts",
    "PackedSequences",
    "PackedWeight",
    "Routing",
    "SplitKWorkspace",
    "StepArena",
    "StepRows",
    "StepTokens",
    "Weight",
    "num_groups",
    "num_scales",
]

_PARTIAL_SUMS = 4 << 20
_SPLIT_TILES = 4096


@dataclass(frozen=True, slots=True)
class SplitKWorkspace:
    """Workspace of products whose K is split on a GPU: programs that share an output tile add up their sums in it.

    One serves all linear layers of a model: they run one after another.
    """

    partials: Tensor
    """Sums of the programs, flat, int32; viewed as fp32 where the sums are."""
    arrivals: Tensor
    """Number of programs that are done with each tile, flat, int32: zero between launches."""

    @classmethod
    def new(cls, device: torch.device) -> SplitKWorkspace:
        """A workspace of 16 MiB: as much as launches of a few hundred programs need."""
        return cls(
            torch.empty(_PARTIAL_SUMS, dtype=torch.int32, device=device),
            torch.zeros(_SPLIT_TILES, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """Weight of a linear layer: ``values`` [N, K], row n the weights of output n.

    int8 weights carry ``scale`` [N] fp32. ``bias`` [N] is added in fp32 before the epilogue. A gated layer stacks the
    gate's N/2 rows above the up projection's N/2 rows.
    """

    values: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None
    int8_input: ActFormat = ActFormat.INT8
    """The format in which an int8 weight wants its input; FLOAT keeps activations whole (W8A16)."""
    workspace: SplitKWorkspace | None = None
    """The model's workspace; without one K is never split."""

    @property
    def act_format(self) -> ActFormat:
        """The format in which the weight wants its input."""
        return self.int8_input if self.scale is not None else ActFormat.FLOAT


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Weight [N, K] of a linear layer in the layout of the native kernels, int8 or bf16.

    Made by :func:`app.kernels.linear.pack.new_packed_weight`, filled row by row with ``pack_rows``. Rows are padded
    with zeros; ``scale`` (int8 only) and ``bias`` are fp32 in the packed order of rows.
    """

    data: Tensor
    """The packed values, flat, int8 or bf16."""
    out_features: int
    """N"""
    in_features: int
    """K"""
    gate_up: bool
    """Whether the N / 2 rows of a gate and those of an up projection are interleaved, for the gated epilogues."""
    scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def act_format(self) -> ActFormat:
        """The format in which the weight wants its input."""
        return ActFormat.INT8 if self.scale is not None else ActFormat.FLOAT

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of the inputs' values."""
        return self.data.dtype


@dataclass(slots=True)
class BlockWeight:
    """Weight [N, K] of a linear layer in the blocks of its file (:mod:`app.kernels.blocks`), for the native kernels.

    Made by :func:`app.kernels.blocks.new_block_weight`. Rows are padded with zeros to panels of 16, in the order of a
    :class:`PackedWeight`; each panel has a type of its own.
    """

    out_features: int
    """N"""
    in_features: int
    """K"""
    gate_up: bool
    """As of a :class:`PackedWeight`."""
    bias: Tensor | None = None
    """fp32 in the packed order of rows."""
    data: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    """The panels, flat, uint8; empty until the types of all rows are known."""
    panels: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.int64))
    """[panels, 2] int64: where in ``data`` each panel begins, and the number of its type."""

    @property
    def act_format(self) -> ActFormat:
        """The format in which the weight wants its input."""
        return ActFormat.INT8

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of the inputs' values."""
        return torch.int8


NativeWeight = PackedWeight | BlockWeight
"""Weights that the native kernels alone read."""
Weight = LinearWeight | NativeWeight


@dataclass(frozen=True, slots=True)
class ExpertsWeight:
    """Weights of a layer's X experts, each a gated MLP of width I: ``gate_up`` [X, 2I, D], a gate's I rows above those
    of the up projection, and ``down`` [X, D, I]. int8 ones carry ``gate_up_scale`` [X, 2I] and ``down_scale`` [X, D].
    ``gate_up_bias`` [X, 2I] and ``down_bias`` [X, D] are added in fp32.
    """

    gate_up: Tensor
    down: Tensor
    gate_up_scale: Tensor | None = None
    down_scale: Tensor | None = None
    int8_input: ActFormat = ActFormat.INT8
    """The format in which int8 weights want their input; FLOAT keeps activations whole (W8A16)."""
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def count(self) -> int:
        """X, the number of experts."""
        return self.gate_up.shape[0]

    @property
    def inner(self) -> int:
        """I, the width of an expert."""
        return self.down.shape[2]

    @property
    def width(self) -> int:
        """D, the width of inputs and outputs."""
        return self.down.shape[1]

    @property
    def act_format(self) -> ActFormat:
        """The format in which the weights want their input."""
        return self.int8_input if self.gate_up_scale is not None else ActFormat.FLOAT


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """Weights of a layer's experts in the layout of the native kernels: for each one the gate and up projection [2I, D]
    (packed with ``gate_up``) and the down projection [D, I].

    Each tuple is what :func:`app.kernels.linear.pack.new_packed_weights` made: one behind the other in memory.
    """

    gate_up: tuple[PackedWeight, ...]
    down: tuple[PackedWeight, ...]

    @property
    def count(self) -> int:
        """X, the number of experts."""
        return len(self.down)

    @property
    def inner(self) -> int:
        """I, the width of an expert."""
        return self.down[0].in_features

    @property
    def width(self) -> int:
        """D, the width of inputs and outputs."""
        return self.down[0].out_features

    @property
    def act_format(self) -> ActFormat:
        """The format in which the weights want their input."""
        return self.down[0].act_format


@dataclass(frozen=True, slots=True)
class Routing:
    """Which k of X experts each token of a step goes to. Slot ``t * k + j`` is the j-th choice of token t."""

    experts: Tensor
    """[T, k] int32: experts of each token, the best first."""
    weights: Tensor
    """[T, k] fp32: factor of each chosen expert's result."""
    slots: Tensor
    """[T * k] int32: all slots, sorted by their expert, those of one expert in ascending order."""
    offsets: Tensor
    """[X + 1] int32: index in ``slots`` at which each expert's slots begin."""


@dataclass(frozen=True, slots=True)
class LayerKVCache:
    """One layer's pages: ``values`` [num_blocks, 2, G, B, E] (0 keys, 1 values); int8 pages carry ``scale``
    [num_blocks, 2, G, B] fp16.

    In ``packed`` pages (bf16 or int8, native kernels only) each [B, E] tile is stored permuted, element pairs side by
    side as dot-product instructions take them: keys [E / 2, B, 2], values [B / 2, E, 2].
    """

    values: Tensor
    scale: Tensor | None = None
    packed: bool = False

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.values.shape[3]

    @property
    def largest(self) -> Tensor:
        """The tensor [num_blocks, ...] that takes most of the memory."""
        return self.values


@dataclass(frozen=True, slots=True)
class LayerLatents:
    """One layer's pages of latent attention: ``values`` [num_blocks, B, C + R], of every token the C elements that all
    heads make keys and values of, normed, then the R rotated elements that all their keys share. Floating.
    """

    values: Tensor

    @property
    def block_size(self) -> int:
        return self.values.shape[1]

    @property
    def largest(self) -> Tensor:
        """The tensor [num_blocks, ...] that takes most of the memory."""
        return self.values


@dataclass(frozen=True, slots=True)
class LayerState:
    """One layer's pages of recurrent state: block b of a sequence holds the state after the last token computed of
    positions ``[b * block_size, (b + 1) * block_size)``.

    A row of tokens at positions ``[start, end)`` reads the block of position ``start - 1`` (a sequence begins with
    zeros) and leaves its state in that of ``end - 1``, which may be the same one. If the boundary
    ``end // block_size * block_size`` lies within the row, behind its first token, the state of the tokens before that
    boundary is left in their block as well. What stands in a block table as -1 is neither read (zeros stand for it)
    nor written.
    """

    conv: Tensor
    """[num_blocks, taps - 1, C]: the last inputs of a convolution, in the inputs' dtype and so exact; the oldest
    first."""
    recurrent: Tensor
    """[num_blocks, Hv, Dk, Dv] fp32: a matrix for each value head, or head of Mamba-2; without elements where there are
    none."""
    block_size: int
    """Tokens of a block."""

    @property
    def largest(self) -> Tensor:
        """The tensor [num_blocks, ...] that takes most of the memory."""
        return max(self.conv, self.recurrent, key=lambda pages: pages.nbytes)


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the step's tokens stand, for every attention layer of a KV cache group alike.

    Row r owns tokens ``query_start_loc[r]:query_start_loc[r + 1]``; they are the last tokens of its ``seq_lens[r]``,
    whose keys and values lie in blocks ``block_tables[r]``.
    """

    query_start_loc: Tensor
    """[R + 1] int32."""
    seq_lens: Tensor
    """[R] int32, this step's tokens included."""
    block_tables: Tensor
    """[R, max_blocks] int32; entries past a row's last block are not read, nor are those before every query's window,
    whose blocks may be anybody's by now, or none."""
    slot_mapping: Tensor
    """[T] int64: block * B + offset at which each token's key and value are written."""
    max_query_len: int
    """Tokens of the largest row."""
    max_seq_len: int
    """Tokens of the longest sequence."""
    split_workspace: Tensor | None = None
    """Workspace of Triton's attention, made by :func:`app.kernels.paged_attention.splits.new_split_workspace`."""


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Whole sequences, one behind the other: sequence r has tokens ``cu_seqlens[r]:cu_seqlens[r + 1]``."""

    cu_seqlens: Tensor
    """[R + 1] int32, from 0 to T; no sequence is empty."""

    @property
    def count(self) -> int:
        """R, the number of sequences."""
        return self.cu_seqlens.numel() - 1


@dataclass(frozen=True, slots=True)
class StepRows:
    """A step's rows as the host sends them; all int32.

    What belongs to a slot stays on the device, so that a step brings only what is new: a block for every sixteenth
    token, a token where the host is its source.
    """

    slots: Tensor
    """[R]: slot of each row."""
    carried: Tensor
    """[R]: 1 where the row's one token is the one that its slot sampled last."""
    table_lens: Tensor
    """[R]: entries that the slot's block table of one KV cache group has already."""
    new_block_loc: Tensor
    """[R + 1]: index in ``feed`` at which each row's new blocks begin."""
    logit_start_loc: Tensor
    """[R + 1]: first row of logits of each row; they are those of its last tokens."""
    feed: Tensor
    """First the step's token ids, [T], in which places of carried tokens are not read; then each row's new blocks."""


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Tokens of a step, which ``expand_rows`` makes of its :class:`StepRows`."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    logit_indices: Tensor
    """[L] int64: tokens whose logits are wanted, row by row."""
