"""Arguments and results of the sampling kernels.

Shape suffixes: R sampled rows, S slots, V vocabulary, Q reported tokens, K alternatives. Tables [S, V] hold a
vocabulary-wide row per slot; a row r uses the tables' row ``slots[r]``. An optional part is None when no row uses
it; a row that does not use a part that others do carries the neutral value, which leaves it bit for bit unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from app.kernels.sample.workspace import SampleWorkspace


@dataclass(frozen=True, slots=True)
class Penalties:
    """Repetition (over prompt and output), presence and frequency (over output) penalties."""

    repetition: Tensor
    """[R] fp32: a seen token's positive logit is divided by it, a negative one multiplied; 1 neutral."""
    presence: Tensor
    """[R] fp32: subtracted once for a token of the output; 0 neutral."""
    frequency: Tensor
    """[R] fp32: subtracted for each occurrence in the output; 0 neutral."""
    prompt_mask: Tensor
    """[S, V] bool: tokens of the prompt."""
    output_counts: Tensor
    """[S, V] int32: occurrences in the output."""


@dataclass(frozen=True, slots=True)
class MinTokens:
    """Tokens that may not end a row yet."""

    active: Tensor
    """[R] bool: whether the row's stop tokens are masked."""
    stop_mask: Tensor
    """[S, V] bool: the slot's stop tokens."""


@dataclass(frozen=True, slots=True)
class SampleParams:
    """How each row is sampled."""

    rows: Tensor
    """[R] int64: index of each sampled row's row of logits."""
    slots: Tensor
    """[R] int64: slot of each sampled row."""
    temperature: Tensor
    """[R] fp32; 0 is greedy."""
    seeds: Tensor
    """[R] int64, the bits of the unsigned 64-bit key."""
    positions: Tensor
    """[R] int64 below 2^32: index that the sampled token will have in its sequence."""
    sample_indices: Tensor
    """[R] int64 below 2^32: number of the choice, a part of the RNG's counter."""
    top_k: Tensor | None = None
    """[R] int64; 0 keeps all."""
    top_p: Tensor | None = None
    """[R] fp32; 1 keeps all."""
    min_p: Tensor | None = None
    """[R] fp32; 0 keeps all."""
    penalties: Penalties | None = None
    min_tokens: MinTokens | None = None
    logit_bias: Tensor | None = None
    """[S, V] fp32: added to each token's logit."""
    token_mask: Tensor | None = None
    """[S, ceil(V / 32)] int32: token v is allowed when bit v % 32 of word v // 32 is set."""
    workspace: SampleWorkspace | None = None
    """Needed by Triton alone."""


@dataclass(frozen=True, slots=True)
class LogprobsOut:
    """Tensors that ``logprobs`` writes."""

    logprob: Tensor
    """[Q] fp32."""
    rank: Tensor
    """[Q] int64, 1 for the most likely token."""
    top_ids: Tensor
    """[Q, K] int64, most likely first."""
    top_logprobs: Tensor
    """[Q, K] fp32."""
