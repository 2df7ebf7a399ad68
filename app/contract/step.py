"""Plans of steps, which the scheduler gives a runner, and the results that come back.

A *position* is a 0-based index into the prompt and output tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from app.contract.frames import TokenLogprobs
from app.contract.request import Pooling, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TokenMasks(Protocol):
    """Masks of a step's samples, which may still be being made when the step is submitted."""

    @property
    def slots(self) -> Sequence[int]:
        """Slot of each mask: one for each sample of its row, in their order. Slots without may sample any token."""

    @property
    def made_meanwhile(self) -> bool:
        """Whether they are made while the step's forward pass runs; otherwise :meth:`wait` makes them."""

    def wait(self) -> NDArray[np.uint32]:
        """Waits for the masks: [masks, ceil(V / 32)]; token v may be sampled when bit v % 32 of word v // 32 is set.

        A sample without any bit fails its row, and no other with it.
        """


class SlotInit(msgspec.Struct, frozen=True, kw_only=True):
    """Binds a slot to a request, in the first step that schedules it and again when it resumes after preemption.

    The slot's block tables start empty.
    """

    slot: int
    sampling: SamplingParams
    seed: int
    """64-bit key of the counter RNG."""
    sample_index: int
    """Number of the choice; part of the counter of the RNG."""
    prompt_len: int
    """Tokens of the prompt."""
    stop_token_ids: list[int]
    """Every id that ends the request (EOS included unless ignored): masked out below ``min_tokens``."""
    prompt_token_ids: list[int] = []
    """Tokens of the prompt; empty unless a penalty counts them."""
    adapter: int = -1
    """The slot of the request's adapter; -1 for none."""
    output_token_ids: list[int] = []
    """Tokens that a preempted request had generated so far; empty unless a penalty counts them."""


class ScheduledRow(msgspec.Struct, frozen=True, kw_only=True):
    """``num_tokens`` consecutive tokens of one request to compute in this step."""

    slot: int
    start: int
    """Position of the row's first token; everything before it is in the KV cache."""
    num_tokens: int
    token_ids: list[int] | None
    """Ids from the host, or None: the one token that the slot sampled last, still on the device."""
    new_block_ids: list[list[int]]
    """Entries appended to the slot's block tables, a list for each KV cache group: blocks, and ``NO_BLOCK`` where the
    group keeps nothing."""
    logits_start: int
    """Logits are needed for the row's tokens [logits_start, num_tokens); equal to num_tokens when for none."""
    num_samples: int
    """The last ``num_samples`` of those positions are sampled: 0 for a chunk in mid-prompt, 1 usually, 1 + drafts.
    The sampled token of position p (its RNG position) is the one that will stand at p + 1."""
    logprob_targets: list[int] = []
    """Tokens that follow the logits positions that are not sampled: their logprobs are reported (prompt logprobs)."""


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable snapshot of one step: the same bytes for every tensor-parallel rank."""

    step: int
    """Number of the step."""
    slots: list[SlotInit]
    """Slots that are bound to requests before the step."""
    rows: list[ScheduledRow]
    num_tokens: int
    """Tokens of all rows."""
    num_logit_rows: int
    """Rows of logits of all rows."""
    token_masks: dict[int, bytes] = {}
    """Slot -> the words of its masks, where the plan goes to other processes; see :class:`TokenMasks`."""

    @property
    def is_decode(self) -> bool:
        """Whether each row has one token, whose logits are wanted."""
        return self.num_tokens == len(self.rows) == self.num_logit_rows


class RowOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one row."""

    token_ids: list[int] = []
    """0 to ``num_samples`` tokens: fewer than asked means that drafts were rejected (or nothing could be sampled)."""
    logprobs: list[TokenLogprobs] | None = None
    """Log-probabilities, one for each of ``token_ids``; None when not asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Log-probabilities of the row's ``logprob_targets``; None when there are none."""
    draft_token_ids: list[int] = []
    """Guesses for the tokens that follow, to be verified by the request's next row."""
    error: str | None = None
    """Why the row failed (non-finite logits); other rows of the step are not affected. None: it did not."""


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one step."""

    rows: list[RowOutput]
    """One for each of :attr:`StepPlan.rows`, in their order."""
    replayed: bool = False
    """Whether the step ran as one call of a recording, not op by op."""
    kernel_seconds: float = 0.0
    """Seconds that the step's kernels ran; on a GPU, that launching them took."""


class EncodeBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Whole sequences to encode at once, packed one behind the other without padding."""

    step: int
    """Number of the batch."""
    token_ids: list[int]
    bounds: list[int]
    """Sequence i is ``token_ids[bounds[i]:bounds[i + 1]]``, never empty."""
    pooling: list[Pooling]
    """Pooling of each sequence."""
    normalize: list[bool]
    """Whether each sequence's vectors are scaled to length 1."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        """Sequences of the batch."""
        return len(self.pooling)


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one sequence; ``shape``, ``data`` and ``dtype`` are those of
    :class:`~app.contract.frames.EncodeOutput`."""

    shape: tuple[int, ...] = ()
    data: bytes = b""
    dtype: str = "float32"
    error: str | None = None
    """Why the sequence failed (its numbers are not finite); others of the batch are not affected. None: it did not."""


class EncodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one :class:`EncodeBatch`."""

    sequences: list[Encoded]
    """One for each sequence of the batch, in their order."""
    replayed: bool = False
    """Whether the batch ran as one call of a recording, not op by op."""
    kernel_seconds: float = 0.0
    """Seconds that the batch's kernels ran; on a GPU, that launching them took."""


Plan = StepPlan | EncodeBatch
"""What a runner is given to compute: a step of rows, or a batch of sequences to encode."""
