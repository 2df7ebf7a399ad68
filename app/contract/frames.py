"""Frames between API process and engine process.

Typed, validated on decode, never pickled. Instants are :func:`time.monotonic`, one clock for every process of a
machine; times are seconds.
"""

from __future__ import annotations

import msgspec

from app.contract.info import RunnerInfo
from app.contract.request import EncodeRequest, FinishReason, GenerateRequest


class AbortRequests(msgspec.Struct, frozen=True, tag="abort"):
    """Stop these requests and free what they hold within one step. Unknown ids are ignored: they have just finished."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Leave the loop and exit 0."""


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True, tag="vocabulary"):
    """What the engine has to know of the tokenizer before it can take a constrained request. Sent once, before the
    first of them."""

    token_bytes: list[bytes]
    """Bytes of each token id; empty for control tokens and for ids without a token."""
    control_tokens: dict[int, str]
    """Names of the control tokens: what a grammar calls ``<name>``."""
    definition: str
    """The ``tokenizer.json`` by which forced text becomes tokens, as the model was trained on it."""


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """Load an adapter while requests go on; answered by an :class:`AdapterOutcome`."""

    name: str
    path: str
    """Its directory, absolute."""


class UnloadAdapter(msgspec.Struct, frozen=True, tag="unload_adapter"):
    """Take no more requests for an adapter, and free its room when the last one ends; answered likewise."""

    name: str


class Survey(msgspec.Struct, frozen=True, tag="survey"):
    """Asks who holds the KV cache. Answered by one :class:`Holdings`, between two steps."""


ClientFrame = (
    Vocabulary | GenerateRequest | EncodeRequest | AbortRequests | LoadAdapter | UnloadAdapter | Survey | Shutdown
)


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one token and of the most likely alternatives at its position."""

    token_id: int
    logprob: float
    rank: int
    """Place of the token among all by logprob; 1 for the most likely one."""
    top: list[tuple[int, float]]
    """(token id, logprob) of the alternatives, most likely first; as many as the request asked for."""


class EngineError(msgspec.Struct, frozen=True, array_like=True):
    """Why a request ended in :attr:`FinishReason.ERROR`."""

    code: str
    """``context_length_exceeded``, ``deadline_exceeded``, ``invalid_request``, ``invalid_constraint``,
    ``adapter_not_found``, ``overloaded``, ``engine_error``, ``engine_restarted``.
    """
    message: str


class RequestTimings(msgspec.Struct, frozen=True, array_like=True):
    """Instants of a request's life in the engine, in seconds; None where it did not get that far."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


class EngineOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What one step gave one request."""

    request_id: str
    new_token_ids: list[int] = []
    """Tokens generated since the request's last output."""
    logprobs: list[TokenLogprobs] | None = None
    """Log-probabilities, one for each of ``new_token_ids``; None when not asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Log-probabilities of the prompt tokens at positions 1, 2, …; all of them with the first output."""
    finish_reason: FinishReason | None = None
    """Why the request ended; None while it goes on."""
    stop_token_id: int | None = None
    """The token that ended the request (EOS or one of ``stop_token_ids``); it is the last of the generated tokens."""
    num_cached_tokens: int = 0
    """Tokens that the request found in the prefix cache when it was first scheduled."""
    error: EngineError | None = None
    timings: RequestTimings | None = None
    """The request's instants, with its first output and with its last; None with others."""
    num_drafts: int = 0
    """Tokens that were guessed and verified so far."""
    num_right_drafts: int = 0
    """Those of them that were right, and so are among the generated tokens."""


class EncodeOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The one answer to an :class:`EncodeRequest`."""

    request_id: str
    dtype: str = ""
    """Dtype of the elements of ``data``: ``float32``."""
    shape: tuple[int, ...] = ()
    """Shape of the result: [D] of a pooled sequence, [tokens, D] without pooling."""
    data: bytes = b""
    """Elements of the result, row by row, little-endian; empty where the request ended without one."""
    finish_reason: FinishReason = FinishReason.STOP
    """``STOP`` with a result, ``ABORT`` or ``ERROR`` without."""
    error: EngineError | None = None
    timings: RequestTimings | None = None
    """The request's instants, of which ``first_token`` is None; None where the request was refused."""


class TierStats(msgspec.Struct, frozen=True, kw_only=True):
    """A tier of the prefix cache below the KV cache; ``*_total`` fields count since the engine process started."""

    tier: str
    """``ram`` or ``disk``."""
    hits_total: int = 0
    """Blocks that were restored from it."""
    hit_tokens_total: int = 0
    """Prompt tokens that were found by that."""
    misses_total: int = 0
    """Blocks that were looked up in it in vain."""
    stores_total: int = 0
    """Blocks that it took."""
    drops_total: int = 0
    """Blocks that it did not take: too many waited to be written, or writing failed."""
    damaged_total: int = 0
    """Files that were not as they had been written, and are gone."""
    held_bytes: int = 0
    """Bytes that it holds: on disk, those of other servers and models in the same directory included."""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State of the engine after a step; ``*_total`` fields count since the engine process started."""

    num_running: int = 0
    """Sequences that are being computed, to generate or to encode."""
    num_waiting: int = 0
    """Sequences that wait to be computed, to generate or to encode."""
    blocks_used: int = 0
    """Blocks that requests hold in the fullest KV cache group; cached blocks that no request holds do not count."""
    blocks_total: int = 0
    """Blocks of the fullest KV cache group."""
    steps_total: int = 0
    """Steps computed."""
    prompt_tokens_total: int = 0
    """Prompt tokens computed (cached ones excluded)."""
    generation_tokens_total: int = 0
    """Tokens generated."""
    preemptions_total: int = 0
    """Times that a running request was sent back to the queue."""
    prefix_query_tokens_total: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_hit_tokens_total: int = 0
    """Prompt tokens that were found in the prefix cache."""
    encode_tokens_total: int = 0
    """Tokens of sequences that were encoded."""
    prefix_tiers: list[TierStats] = []
    """The prefix cache's tiers below the KV cache."""
    draft_tokens_total: int = 0
    """Tokens that were guessed and verified."""
    accepted_draft_tokens_total: int = 0
    """Those of them that were right."""
    forced_tokens_total: int = 0
    """Tokens generated that were not sampled: a grammar left no choice."""
    mask_seconds_total: float = 0.0
    """Seconds that making masks took, beside the steps' kernels."""
    grammars_compiled_total: int = 0
    """Grammars compiled; those that were there already, or did not compile, are not counted."""
    compile_seconds_total: float = 0.0
    """Seconds that compiling them took, beside the steps."""


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    """What one step did and where its time went."""

    tokens: int
    """Tokens that the step computed."""
    seconds: float
    """Seconds from the end of the step before, or from when there was work again, to the step's results."""
    kernel_seconds: float
    """Seconds that the step's kernels ran; the host took the rest: schedule, prepare, collect, send."""
    decode: bool
    """Whether each row computed only what it sampled; otherwise the step read prompts too."""
    replayed: bool
    """Whether the step ran as one call of a recording, not op by op."""
    encode: bool = False
    """Whether the step was a batch of sequences to encode."""


class OutputFrame(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """The one frame that a step sends a client."""

    client_index: int
    outputs: list[EngineOutput]
    """Outputs of the client's requests to generate."""
    encoded: list[EncodeOutput] = []
    """Answers to the client's requests to encode."""
    stats: EngineStats
    steps: list[StepRecord] = []
    """Records of the steps since the frame before."""


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """What one running sequence holds of the KV cache."""

    request_id: str
    blocks: int
    """Blocks that the sequence holds."""
    shared_blocks: int
    """Those of them that other sequences hold too: a common prefix."""


class Holdings(msgspec.Struct, frozen=True, kw_only=True, tag="holdings"):
    """Who holds the blocks of the fullest KV cache group at one moment."""

    total: int
    """Blocks that there are."""
    held: int
    """Blocks that sequences hold, each counted once."""
    cached: int
    """Blocks that no sequence holds and that the prefix cache could give to one."""
    sequences: list[Holding]
    """Those that hold blocks."""


class LoadProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far start-up has come."""

    phase: str
    """Name of what is being done: ``config``, ``weights``, ``kv_cache`` or ``warmup``."""
    done: int = 0
    """Units of the phase that are done; bytes of ``weights`` and ``kv_cache``."""
    total: int = 0
    """Units of the whole phase; 0: not countable."""
    seconds: float = 0.0
    """Seconds since the phase began."""


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine takes requests from here on."""

    info: RunnerInfo
    max_kv_tokens: int
    """Tokens of the longest sequence that the whole KV cache holds."""
    pid: int
    adapters: list[str] = []
    """Names of the adapters that are loaded."""


class AdapterOutcome(msgspec.Struct, frozen=True, kw_only=True, tag="adapter"):
    """The answer to a :class:`LoadAdapter` or an :class:`UnloadAdapter`."""

    name: str
    error: str | None = None
    """Why it was not done, one line; None: it was."""


class EngineFatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The engine cannot go on."""

    message: str
    """Why; one line that a person can act on."""


EngineFrame = OutputFrame | Holdings | LoadProgress | EngineReady | AdapterOutcome | EngineFatal
