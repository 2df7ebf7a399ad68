"""Each slot's sampling parameters, as requests bind them.

Shape suffixes: S slots, V vocabulary.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.contract.step import SlotInit
from app.runner.staging import to_device

_UNSIGNED_64 = (1 << 64) - 1


class FloatParam(enum.IntEnum):
    """Rows of :attr:`SlotParams.floats`."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    REPETITION = 3
    PRESENCE = 4
    FREQUENCY = 5


class IntParam(enum.IntEnum):
    """Rows of :attr:`SlotParams.ints`."""

    SEED = 0
    SAMPLE_INDEX = 1
    TOP_K = 2
    MIN_LEN = 3
    """Tokens, prompt included, below which a stop token is masked."""
    BIASED = 4
    """1 where the request has a logit bias."""
    LOGPROBS = 5
    """Alternatives reported for each generated token; -1: nothing is reported."""
    PROMPT_LOGPROBS = 6
    """Alternatives reported for each prompt token; -1: nothing is reported."""


NUM_KERNEL_INTS = 3
"""Integer parameters that kernels read, the first ones: seed, sample index and top_k."""


class VocabTable:
    """A table [S, V], allocated when the first slot needs its row.

    Args:
        spare: rows behind those of the slots, which stay zero.
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, *, spare: int = 0) -> None:
        self._shape, self._dtype, self._device, self._spare = shape, dtype, device, spare
        self._table: Tensor | None = None
        self._dirty: set[int] = set()

    @property
    def pending_bytes(self) -> int:
        """Bytes that the table will take once a slot needs it; 0 when it has been allocated."""
        if self._table is not None:
            return 0
        return self._shape[0] * self._shape[1] * self._dtype.itemsize

    def require(self) -> Tensor:
        """[S + spare, V], zeros when new; spare rows take no memory."""
        if self._table is None:
            # First asked for while a step is recorded, in inference mode; slots are bound outside of it.
            with torch.inference_mode(mode=False):
                self._table = self._zeros()
        return self._table

    def _zeros(self) -> Tensor:
        (count, width), dtype = self._shape, self._dtype
        if not self._spare:
            return torch.zeros(count, width, dtype=dtype, device=self._device)
        # numpy's zeros take memory as they are written.
        values = torch.from_numpy(np.zeros((count + self._spare) * width * dtype.itemsize, dtype=np.uint8))
        return values.view(dtype).view(count + self._spare, width)

    def row(self, slot: int) -> Tensor:
        """A slot's row [V], to be written to."""
        self._dirty.add(slot)
        return self.require()[slot]

    def touch(self, slots: Iterable[int]) -> None:
        """Notes that a kernel writes to these slots' rows."""
        self._dirty.update(slots)

    def clear(self, slot: int) -> None:
        """Zeroes a slot's row, if anything was written to it."""
        if slot in self._dirty and self._table is not None:
            self._table[slot].zero_()
            self._dirty.discard(slot)


class MaskTable:
    """Which tokens each slot may sample: a bit a token, [S, ceil(V / 32)], allocated with the first mask.

    Slots that nobody masks may sample any.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._shape = (num_rows, -(-vocab_size // 32))
        self._device = device
        self._table: Tensor | None = None
        self._rows: NDArray[np.int32] | None = None  # the table without torch: see app.runner.staging.Returns.of
        self._masked: set[int] = set()

    @property
    def pending_bytes(self) -> int:
        """Bytes that the table will take with the first mask; 0 when it has been allocated."""
        return 0 if self._table is not None else self._shape[0] * self._shape[1] * torch.int32.itemsize

    def require(self) -> Tensor:
        """[S, ceil(V / 32)] int32: token v is allowed when bit v % 32 of word v // 32 is set."""
        if self._table is None:
            with torch.inference_mode(mode=False):
                self._table = torch.full(self._shape, -1, dtype=torch.int32, device=self._device)
        return self._table

    def write(self, slots: Sequence[int], words: NDArray[np.int32]) -> None:
        """Sets the rows of some slots, [slots, ceil(V / 32)]."""
        table = self.require()
        self._masked.update(slots)
        if self._device.type == "cpu":
            if self._rows is None:
                self._rows = table.numpy()
            for slot, row in zip(slots, words, strict=True):
                self._rows[slot] = row  # an index of several costs more than the copies
        else:
            index = to_device(np.array(slots, dtype=np.int64), self._device)
            table.index_copy_(0, index, to_device(words, self._device))

    def clear(self, slot: int) -> None:
        """Lets a slot sample any token."""
        if slot in self._masked and self._table is not None:
            self._table[slot].fill_(-1)
            self._masked.discard(slot)


class SlotParams:
    """What requests have bound to the slots.

    Args:
        num_slots: slots that requests are bound to.
        padded: the tables have one row more, for rows that pad a step.
        spare: rows more behind that, on a CPU, of which only masks are written.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device, *, padded: bool, spare: int = 0) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self.floats = np.zeros((len(FloatParam), num_slots), dtype=np.float32)
        """[parameter, S]: floating parameters, on the host."""
        self.ints = np.zeros((len(IntParam), num_slots), dtype=np.int64)
        """[parameter, S]: integer parameters, on the host."""
        shape = (num_slots + padded, vocab_size)
        self.prompt_mask = VocabTable(shape, torch.bool, device, spare=spare)
        """Tokens of the prompt."""
        self.output_counts = VocabTable(shape, torch.int32, device, spare=spare)
        """Occurrences of each token in the output."""
        self.stop_mask = VocabTable(shape, torch.bool, device, spare=spare)
        """Tokens that end the request."""
        self.logit_bias = VocabTable(shape, torch.float32, device, spare=spare)
        """What is added to each token's logit; -inf where it is not among those allowed."""
        self.token_mask = MaskTable(num_slots + padded + spare, vocab_size, device)
        """Tokens that the slot's grammar lets come next."""

    @property
    def on_demand_bytes(self) -> int:
        """Bytes of the tables that no request has asked for yet, by penalties, biases and the like."""
        return sum(table.pending_bytes for table in self._tables()) + self.token_mask.pending_bytes

    def bind(self, init: SlotInit) -> None:
        """Binds a slot to a new or resumed request; whatever it held before is gone."""
        slot, params = init.slot, init.sampling
        floats, ints = self.floats[:, slot], self.ints[:, slot]
        floats[FloatParam.TEMPERATURE] = params.temperature
        floats[FloatParam.TOP_P] = params.top_p
        floats[FloatParam.MIN_P] = params.min_p
        floats[FloatParam.REPETITION] = params.repetition_penalty
        floats[FloatParam.PRESENCE] = params.presence_penalty
        floats[FloatParam.FREQUENCY] = params.frequency_penalty
        ints[IntParam.SEED] = np.uint64(init.seed & _UNSIGNED_64).astype(np.int64)
        ints[IntParam.SAMPLE_INDEX] = init.sample_index
        ints[IntParam.TOP_K] = min(params.top_k, self._vocab_size)
        ints[IntParam.MIN_LEN] = init.prompt_len + params.min_tokens if params.min_tokens and init.stop_token_ids else 0
        ints[IntParam.BIASED] = bool(params.logit_bias or params.allowed_token_ids)
        ints[IntParam.LOGPROBS] = -1 if params.logprobs is None else params.logprobs
        ints[IntParam.PROMPT_LOGPROBS] = -1 if params.prompt_logprobs is None else params.prompt_logprobs
        self._bind_tables(init)

    def _bind_tables(self, init: SlotInit) -> None:
        slot, params = init.slot, init.sampling
        for table in self._tables():
            table.clear(slot)
        self.token_mask.clear(slot)
        if params.min_tokens and init.stop_token_ids:
            self.stop_mask.row(slot).index_fill_(0, self._ids(init.stop_token_ids), value=True)
        if params.logit_bias:
            values = to_device(np.array(list(params.logit_bias.values()), dtype=np.float32), self._device)
            self.logit_bias.row(slot).index_copy_(0, self._ids(list(params.logit_bias)), values)
        if params.allowed_token_ids:
            bias = self.logit_bias.row(slot)
            allowed = self._ids(list(params.allowed_token_ids))
            kept = bias.index_select(0, allowed)
            bias.fill_(-torch.inf).index_copy_(0, allowed, kept)
        if params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
            self.prompt_mask.row(slot).index_fill_(0, self._ids(init.prompt_token_ids), value=True)
            output = self._ids(init.output_token_ids)
            self.output_counts.row(slot).index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def _tables(self) -> tuple[VocabTable, ...]:
        return self.prompt_mask, self.output_counts, self.stop_mask, self.logit_bias

    def _ids(self, token_ids: list[int]) -> Tensor:
        return to_device(np.array(token_ids, dtype=np.int64), self._device)
