"""Tensors that travel between kernels, and the step arena they are taken from.

Shape suffixes: T tokens of a step, R rows (sequences) of a step, L rows of logits, D model width, H query heads,
G key/value heads, E head width, V vocabulary, N / K output / input features of a linear layer, B block size.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

ACT_GROUP = 64
"""Neighbouring elements of an int8 activation that share a scale. One scale a token would be set by the few channels
whose values are ten times the others': measured on SmolLM2-135M, that costs 3.7 % of perplexity, groups 0.2 %."""


def num_groups(width: int) -> int:
    """Scales of an int8 activation of ``width`` elements; the last group may be shorter."""
    return -(-width // ACT_GROUP)


class ActFormat(enum.Enum):
    """The format in which a linear layer wants its input."""

    FLOAT = "float"
    INT8 = "int8"
    """Symmetric int8 with an fp32 scale for every 64 neighbours of a token (``ACT_GROUP``)."""
    INT8_TOKEN = "int8 token"  # noqa: S105
    """Symmetric int8 with one fp32 scale a token: on a GPU, where tensor cores outrun the scaling of groups."""


def num_scales(width: int, fmt: ActFormat) -> int:
    """Scales of a token's activation of ``width`` elements in one of the int8 formats."""
    return 1 if fmt is ActFormat.INT8_TOKEN else num_groups(width)


@dataclass(frozen=True, slots=True)
class Act:
    """An activation [T, K]: floating ``values`` and no scale, or int8 ``values`` and ``scale`` fp32, [T, K / 64] or
    [T, 1]."""

    values: Tensor
    scale: Tensor | None = None


_PARTIAL_SUMS = 4 << 20
_SPLIT_TILES = 4096


@dataclass(frozen=True, slots=True)
class SplitKWorkspace:
    """Where programs on a GPU that share an output tile, each with a part of K, put their sums together.

    One serves all linear layers of a model: they run one after another.
    """

    partials: Tensor
    """Flat, int32; seen as fp32 where the sums are."""
    arrivals: Tensor
    """Flat, int32, for each tile the programs that are done with it: zero between launches."""

    @classmethod
    def new(cls, device: torch.device) -> SplitKWorkspace:
        """16 MiB: what launches of a few hundred programs leave behind."""
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
    """Of the model; without one K is never split."""

    @property
    def act_format(self) -> ActFormat:
        return self.int8_input if self.scale is not None else ActFormat.FLOAT


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Weight [N, K] of a linear layer in the layout of the native kernels, int8 or bf16.

    Made by :func:`app.kernels.linear.pack.new_packed_weight`, filled row by row with ``pack_rows``. Rows are padded
    with zeros; ``scale`` (int8 only) and ``bias`` are fp32 in the packed order of rows.
    """

    data: Tensor
    """Flat, int8 or bf16."""
    out_features: int
    in_features: int
    gate_up: bool
    """The N / 2 rows of a gate and those of an up projection, interleaved by panels for the gated epilogues."""
    scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def act_format(self) -> ActFormat:
        return ActFormat.INT8 if self.scale is not None else ActFormat.FLOAT


Weight = LinearWeight | PackedWeight


@dataclass(frozen=True, slots=True)
class ExpertsWeight:
    """Weights of a layer's X experts, each a gated MLP of width I: ``gate_up`` [X, 2I, D], a gate's I rows above those
    of the up projection, and ``down`` [X, D, I]. int8 ones carry ``gate_up_scale`` [X, 2I] and ``down_scale`` [X, D].
    """

    gate_up: Tensor
    down: Tensor
    gate_up_scale: Tensor | None = None
    down_scale: Tensor | None = None
    int8_input: ActFormat = ActFormat.INT8
    """The format in which int8 weights want their input; FLOAT keeps activations whole (W8A16)."""

    @property
    def count(self) -> int:
        """X"""
        return self.gate_up.shape[0]

    @property
    def inner(self) -> int:
        """I"""
        return self.down.shape[2]

    @property
    def width(self) -> int:
        """D"""
        return self.down.shape[1]

    @property
    def act_format(self) -> ActFormat:
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
        """X"""
        return len(self.down)

    @property
    def inner(self) -> int:
        """I"""
        return self.down[0].in_features

    @property
    def width(self) -> int:
        """D"""
        return self.down[0].out_features

    @property
    def act_format(self) -> ActFormat:
        return self.down[0].act_format


@dataclass(frozen=True, slots=True)
class Routing:
    """Which k of X experts each token of a step goes to. Slot ``t * k + j`` is the j-th choice of token t."""

    experts: Tensor
    """[T, k] int32, of each token the best first."""
    weights: Tensor
    """[T, k] fp32: what each expert's result counts."""
    slots: Tensor
    """[T * k] int32: all slots by their expert, those of one expert in ascending order."""
    offsets: Tensor
    """[X + 1] int32: where in ``slots`` each expert's begin."""


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
        return self.values.shape[3]

    @property
    def largest(self) -> Tensor:
        """The tensor [num_blocks, ...] that takes most of the memory."""
        return self.values


@dataclass(frozen=True, slots=True)
class LayerState:
    """One layer's pages of recurrent state: block b of a sequence holds what its tokens up to the last one computed of
    positions ``[b * block_size, (b + 1) * block_size)`` leave behind.

    A row of tokens at positions ``[start, end)`` reads the block of position ``start - 1`` (a sequence begins with
    zeros) and leaves its state in that of ``end - 1``, which may be the same one. If the boundary
    ``end // block_size * block_size`` lies within the row, behind its first token, the state of the tokens before that
    boundary is left in their block as well. What stands in a block table as -1 is neither read (zeros stand for it)
    nor written.
    """

    conv: Tensor
    """[num_blocks, taps - 1, C], the inputs of a convolution before the next token, of their dtype and so exact; the
    oldest first."""
    recurrent: Tensor
    """[num_blocks, Hv, Dk, Dv] fp32: a matrix a value head."""
    block_size: int
    """Tokens of a block."""

    @property
    def largest(self) -> Tensor:
        """The tensor [num_blocks, ...] that takes most of the memory."""
        return self.recurrent


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
    max_seq_len: int
    split_workspace: Tensor | None = None
    """What :func:`app.kernels.paged_attention.splits.new_split_workspace` made, where Triton attends."""


@dataclass(frozen=True, slots=True)
class PackedSequences:
    """Whole sequences, one behind the other: sequence r has tokens ``cu_seqlens[r]:cu_seqlens[r + 1]``."""

    cu_seqlens: Tensor
    """[R + 1] int32, from 0 to T; no sequence is empty."""

    @property
    def count(self) -> int:
        """R."""
        return self.cu_seqlens.numel() - 1


@dataclass(frozen=True, slots=True)
class StepRows:
    """A step's rows as the host tells of them; all int32.

    What hangs on a slot stays on the device, so that a step brings what is new and no more: a block for every
    sixteenth token, a token where the host is its source.
    """

    slots: Tensor
    """[R]"""
    carried: Tensor
    """[R]: 1 where the row's one token is the one that its slot sampled last."""
    table_lens: Tensor
    """[R]: blocks that the slot's table holds already, of one KV cache group."""
    new_block_loc: Tensor
    """[R + 1]: where in ``feed`` each row's new blocks begin."""
    logit_start_loc: Tensor
    """[R + 1]: where each row's logits begin; they are those of its last tokens."""
    feed: Tensor
    """First the token ids of the step, [T], the carried ones left out; somewhere behind them the new blocks."""


@dataclass(frozen=True, slots=True)
class StepTokens:
    """What ``expand_rows`` makes of them, beside the metadata's ``block_tables`` and ``slot_mapping``."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    logit_indices: Tensor
    """[L] int64: tokens whose logits are wanted, row by row."""


class StepArena:
    """Activations of one step, each at the same address in every step.

    ``take`` hands out a view of the first T rows of a buffer that holds ``max_rows``; calls must come in the same
    order with the same widths in every step (a recorded step replays the addresses). Nothing is zeroed.
    """

    def __init__(self, max_rows: int, device: torch.device, max_logit_rows: int | None = None) -> None:
        self._max_rows = max_rows
        self.max_logit_rows = max_rows if max_logit_rows is None else max_logit_rows
        """Rows of logits of the largest step."""
        self._device = device
        self._buffers: list[Tensor] = []
        self._next = 0
        self._rows = 0

    @property
    def max_rows(self) -> int:
        """Tokens of the largest step."""
        return self._max_rows

    def begin(self, rows: int) -> None:
        """Starts a step of ``rows`` tokens; what was taken before may be overwritten from here on.

        Raises:
            ValueError: more rows than the arena holds.
        """
        if rows > self._max_rows:
            raise ValueError(f"a step of {rows} rows does not fit an arena of {self._max_rows}")
        self._next = 0
        self._rows = rows

    def take(self, width: int, dtype: torch.dtype) -> Tensor:
        """The step's next buffer, [T, width]."""
        return self._take(self._max_rows, width, dtype)[: self._rows]

    def take_flat(self, elements: int, dtype: torch.dtype) -> Tensor:
        """The step's next buffer, [elements], whatever the step's size."""
        return self._take(1, elements, dtype)[0]

    def _take(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        if self._next == len(self._buffers):
            self._buffers.append(torch.empty(rows, width, dtype=dtype, device=self._device))
        buffer = self._buffers[self._next]
        if buffer.shape[1] != width or buffer.dtype != dtype:
            raise ValueError(
                f"arena buffer {self._next} is [{buffer.shape[1]}] {buffer.dtype}, asked for [{width}] {dtype}"
            )
        self._next += 1
        return buffer

    def take_act(self, width: int, dtype: torch.dtype, fmt: ActFormat) -> Act:
        """An :class:`Act` [T, width] in the format that its consumer asks for."""
        if fmt is ActFormat.FLOAT:
            return Act(self.take(width, dtype))
        return Act(self.take(width, torch.int8), self.take(num_scales(width, fmt), torch.float32))

    def nbytes(self) -> int:
        """Bytes held by the buffers handed out so far."""
        return sum(b.numel() * b.element_size() for b in self._buffers)
