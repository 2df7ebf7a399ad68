"""Records that the API process and the engine process share.

Everything that crosses the socketpair between the two processes, and everything that crosses from the
scheduler to a runner, is one of these ``msgspec`` structs: typed, validated on decode, never pickled. Nothing
here knows torch, HTTP or text; token ids are plain ints.

Units: times are seconds, instants are :func:`time.monotonic` (one clock for every process of a machine), sizes
are bytes. A *position* is a 0-based index into a request's prompt + output tokens.
"""

from __future__ import annotations

import enum

import msgspec


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class RequestStatus(enum.StrEnum):
    """Where a request stands inside the engine."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence is sampled. Validated by the API layer and again by the engine.

    ``stop`` is matched on text, in the API process only. Logprobs are those of the raw logits, before penalties,
    bias and temperature.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Keep the matched stop string (or stop token's text) in the answer, as far as ``skip_special_tokens`` lets it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    """Alternatives reported for each generated token; 0 reports the token alone, None nothing."""
    prompt_logprobs: int | None = None
    """The same for each prompt token after the first."""
    logit_bias: dict[int, float] = {}
    skip_special_tokens: bool = True


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine process needs to know; its first frame."""

    model_dir: str
    """Directory with ``config.json`` and the weights (safetensors or one ``.gguf``)."""
    weights: tuple[str, ...] = ()
    """Weight files, absolute; empty with ``load_format="dummy"``."""
    load_format: str = "auto"
    """``auto`` reads the weights, ``dummy`` makes random ones from the config."""
    device: str = "cpu"
    dtype: str = "float32"
    """Of activations, and of weights that are not quantised; ``auto`` leaves it to device and quantisation."""
    quantization: str = "none"
    """``none``, ``int8`` (activations too), ``int8_weight_only``, or ``auto``: int8 where the native kernels run and
    ``dtype`` is ``auto`` too."""
    kv_cache_dtype: str = "auto"
    """``auto``: with the native kernels' packed weights int8 or bfloat16, as those are, ``dtype`` otherwise."""
    packed_cache: str | None = None
    """Directory for weights in the native kernels' layout, so that the next start need not make them again."""
    block_size: int = 16
    kv_cache_memory: int | None = None
    """Bytes for the paged KV cache of each rank, all layers together; None: 1 GiB on a CPU, on a GPU all that is left
    there."""
    num_blocks: int | tuple[int, ...] | None = None
    """Exact number of KV blocks, of every KV cache group or of each, instead of a memory budget (tests)."""
    max_model_len: int | None = None
    """None takes the model's own context length, cut to what the KV cache can hold."""
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    """Token budget of one step."""
    max_queued_encode_tokens: int = 1 << 20
    """Tokens of all sequences that may wait to be encoded; what comes on top of them is refused."""
    max_logit_rows: int = 256
    """Rows of logits one step may ask for; bounds the [rows, vocab] buffer."""
    enable_prefix_caching: bool = True
    pipeline_depth: int | None = None
    """Steps that may be under way at once; None: two on a GPU, where the next is launched before the last is read."""
    enforce_eager: bool = False
    """Run every step op by op: no recorded steps on a CPU, no CUDA graphs."""
    trace_step: bool = False
    """Log the plan of every step, a line a row."""
    tensor_parallel_size: int = 1
    """Ranks that share the model, each a process on a GPU of its own, or on the CPU."""
    threads: int = 0
    """Compute threads, of all ranks together; 0 leaves the choice to the runner."""
    kernels: str = "auto"
    """``auto``, ``reference`` (plain torch) or ``strict`` (native or an error)."""
    seed: int = 0
    """Seed of dummy weights."""
    eos_token_ids: tuple[int, ...] = ()
    integrity_checks: bool = False
    """Check the block allocator's invariants whenever the engine goes idle."""


# ---------------------------------------------------------------------------------------------------------------
# API process -> engine


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One sequence to generate. ``n`` choices are ``n`` of these, told apart by ``sample_index``."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    seed: int
    """64-bit key of the counter RNG: the client's, or drawn at admission."""
    sample_index: int = 0
    client_index: int = 0
    priority: int = 0
    """Lower runs first; equal priorities in order of arrival."""
    arrival_time: float = 0.0
    deadline: float | None = None
    """Instant after which the request is answered with an error instead of more work."""
    cache_salt: str = ""
    """Requests share cached prefixes only under the same salt."""


class Pooling(enum.StrEnum):
    """How the hidden states of a sequence become one vector."""

    MEAN = "mean"
    CLS = "cls"
    """That of the first token."""
    LAST = "last"
    """That of the last token."""
    NONE = "none"
    """Not at all: the hidden state of every token is returned."""


class EncodeRequest(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """One sequence to encode, whole."""

    request_id: str
    token_ids: list[int]
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    """The vector is scaled to length 1; without pooling each token's is."""
    client_index: int = 0
    priority: int = 0
    """Lower runs first; equal priorities in order of arrival."""
    arrival_time: float = 0.0
    deadline: float | None = None
    """Instant after which the request is answered with an error instead of more work."""


class AbortRequests(msgspec.Struct, frozen=True, tag="abort"):
    """Stop these requests and free what they hold within one step. Unknown ids are ignored: they just finished."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Leave the loop and exit 0."""


ClientFrame = GenerateRequest | EncodeRequest | AbortRequests | Shutdown


# ---------------------------------------------------------------------------------------------------------------
# engine -> API process


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one token and of the most likely alternatives at its position."""

    token_id: int
    logprob: float
    rank: int
    """1 for the most likely token."""
    top: list[tuple[int, float]]
    """(token id, logprob), most likely first; the caller's number of alternatives."""


class EngineError(msgspec.Struct, frozen=True, array_like=True):
    """Why a request ended in :attr:`FinishReason.ERROR`."""

    code: str
    """``context_length_exceeded``, ``deadline_exceeded``, ``invalid_request``, ``overloaded``,
    ``engine_error``, ``engine_restarted``.
    """
    message: str


class RequestTimings(msgspec.Struct, frozen=True, array_like=True):
    """Instants of a request's life in the engine; None where it did not get that far."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


class EngineOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What one step gave one request."""

    request_id: str
    new_token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    """One an element of ``new_token_ids``, when asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """For prompt positions 1, 2, …; in one piece, with the first output."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The token that ended the request (EOS or of ``stop_token_ids``); it is the last of the generated tokens."""
    num_cached_tokens: int = 0
    error: EngineError | None = None
    timings: RequestTimings | None = None
    """With the first output and with the last."""


class EncodeOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The one answer to an :class:`EncodeRequest`."""

    request_id: str
    dtype: str = ""
    """Of the elements of ``data``: ``float32``."""
    shape: tuple[int, ...] = ()
    """[D] of a pooled sequence, [tokens, D] without pooling."""
    data: bytes = b""
    """The elements, row by row, little-endian; empty where the request ended without a result."""
    finish_reason: FinishReason = FinishReason.STOP
    """``STOP`` with a result, ``ABORT`` or ``ERROR`` without."""
    error: EngineError | None = None
    timings: RequestTimings | None = None
    """``first_token`` is None. None altogether where the request was refused."""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State after a step; ``*_total`` fields count since the engine process started."""

    num_running: int = 0
    """Sequences that are being computed, to generate or to encode; likewise ``num_waiting``."""
    num_waiting: int = 0
    blocks_used: int = 0
    """Blocks held by requests; cached blocks nobody holds are free. Of the KV cache group of which most is held."""
    blocks_total: int = 0
    """Blocks of that group."""
    steps_total: int = 0
    prompt_tokens_total: int = 0
    """Prompt tokens computed (cached ones excluded)."""
    generation_tokens_total: int = 0
    preemptions_total: int = 0
    prefix_query_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    encode_tokens_total: int = 0
    """Tokens of sequences that were encoded."""


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    """What one step did and where its time went."""

    tokens: int
    """Computed."""
    seconds: float
    """From the end of the step before, or from when there was work again, to its results."""
    kernel_seconds: float
    """That its kernels ran; the rest is the host's: schedule, prepare, collect, send."""
    decode: bool
    """Each row computed only what it sampled; otherwise the step read prompts too."""
    replayed: bool
    """Run as one call of a recording, not op by op."""
    encode: bool = False
    """A batch of sequences to encode, of which each was computed whole."""


class StepOutputs(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """The one frame that a step sends a client."""

    client_index: int
    outputs: list[EngineOutput]
    encoded: list[EncodeOutput] = []
    stats: EngineStats
    steps: list[StepRecord] = []
    """Steps since the frame before."""


class LoadProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far start-up has come."""

    phase: str
    done: int = 0
    total: int = 0
    """0: not countable."""
    seconds: float = 0.0
    """Since the phase began."""


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine takes requests from here on."""

    info: RunnerInfo
    max_kv_tokens: int
    """Tokens of the longest sequence that the whole KV cache holds."""
    pid: int


class EngineFatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The engine cannot go on; one line a person can act on."""

    message: str


EngineFrame = StepOutputs | LoadProgress | EngineReady | EngineFatal


# ---------------------------------------------------------------------------------------------------------------
# scheduler -> runner -> scheduler (one step)


NO_BLOCK = -1
"""Stands in a block table where a group keeps nothing: what has left a window, what lies before a cached prefix's last
window, a boundary without a checkpoint. A kernel neither reads nor writes such an entry's block."""


class KVCacheGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that share block tables and pages of one size: all full-attention layers, all layers of one window, …

    Entry b of a sequence's table is the block of its positions ``[b * block_size, (b + 1) * block_size)``:

    * ``full``: their keys and values; a token reads the blocks of all positions up to its own.
    * ``sliding``: the same; a token at position p reads positions above ``p - window`` alone.
    * ``state``: one recurrent state, that after the last of those positions that has been computed. A row of tokens
      ``[start, end)`` reads the state of entry ``(start - 1) // block_size`` and leaves its own in entry
      ``(end - 1) // block_size``; if it passes a boundary of blocks, it leaves the state at the last one in entry
      ``end // block_size - 1`` too. No row reads a state that another row of its step writes.
    """

    kind: str
    """``full``, ``sliding`` or ``state``."""
    layers: tuple[int, ...]
    """Indices of the model's layers, ascending."""
    num_kv_heads: int = 0
    """Of each layer's keys and values, like ``head_dim``; states have neither."""
    head_dim: int = 0
    dtype: str
    """Of keys and values; of a model's activations in a ``state`` group, whose matrices are float32."""
    bytes_per_block: int
    """All layers of the group: keys and values, or states; scales included."""
    num_blocks: int = 0
    """Blocks of the group's pages, 0 to ``num_blocks - 1``, all for requests; 0 before they are planned."""
    window: int | None = None
    """Positions that a token sees, itself included; of a ``sliding`` group."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def most_blocks(self, num_tokens: int, block_size: int, *, chunk: int, steps: int = 1) -> int:
        """Blocks that a sequence holds at once, at most, while it grows to ``num_tokens``.

        Args:
            chunk: tokens of its rows, at most.
            steps: steps under way at once, at most.
        """
        all_blocks = -(-num_tokens // block_size)
        if self.kind == "state":
            return min(all_blocks, 1 + 2 * steps)  # what a row reads; its end, and the last boundary before it
        if self.window is None:
            return all_blocks
        # So many positions in a row, wherever they begin.
        return min(all_blocks, (self.window - 1 + steps * chunk + block_size - 2) // block_size + 1)


class KVCacheSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a model keeps between steps."""

    block_size: int
    groups: list[KVCacheGroup]
    """Each with blocks and tables of its own."""

    @property
    def dtype(self) -> str:
        """Of keys and values; of states where there are no others; ``none`` where nothing is kept."""
        kept = [group.dtype for group in self.groups]
        return next((group.dtype for group in self.groups if group.kind != "state"), kept[0] if kept else "none")


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a loaded model; none changes while its process lives."""

    max_model_len: int
    """Tokens of the longest sequence."""
    vocab_size: int
    """Width of the logits: valid token ids are below it."""
    num_parameters: int
    """Elements of the whole model's weights, tied ones once."""
    weight_bytes: int
    """Bytes of all weights of all ranks, tied ones once."""
    kv_cache: KVCacheSpec
    """KV cache of each rank."""
    kv_cache_bytes: int
    """Bytes of all pages of all ranks."""
    dtype: str
    """Of activations, and of weights that are not quantised."""
    quantization: str = "none"
    """Of the weights: ``none``, ``int8`` or ``int8_weight_only``."""
    kernels: str = "torch"
    """What runs the linear layers: an instruction set of the native kernels, ``triton``, or ``torch``."""
    device: str
    """Where the model runs; with several ranks, the first one's share."""
    pipeline_depth: int = 1
    """Steps that are best under way at once."""
    tasks: tuple[str, ...] = ("generate",)
    """What the model can be asked for."""
    max_encode_len: int = 0
    """Tokens of the longest sequence that can be encoded; 0: the model does not encode."""

    @property
    def kv_cache_dtype(self) -> str:
        """Of keys and values; see :attr:`KVCacheSpec.dtype`."""
        return self.kv_cache.dtype


class SlotInit(msgspec.Struct, frozen=True, kw_only=True):
    """Binds a slot to a request, in the first step that schedules it and again when it resumes after preemption.

    The slot's block tables start empty.
    """

    slot: int
    sampling: SamplingParams
    seed: int
    sample_index: int
    prompt_len: int
    stop_token_ids: list[int]
    """Every id that ends the request (EOS included unless ignored): masked out below ``min_tokens``."""
    prompt_token_ids: list[int] = []
    """Only when a penalty needs to count them."""
    output_token_ids: list[int] = []
    """Likewise: what a preempted request had generated so far."""


class ScheduledRow(msgspec.Struct, frozen=True, kw_only=True):
    """``num_tokens`` consecutive tokens of one request to compute in this step."""

    slot: int
    start: int
    """Position of the row's first token; everything before it is in the KV cache."""
    num_tokens: int
    token_ids: list[int] | None
    """Ids from the host, or None: the one token that the slot sampled last, still on the device."""
    new_block_ids: list[list[int]]
    """Entries appended to the slot's table, a list for each KV cache group: blocks, and ``NO_BLOCK`` where it keeps
    nothing."""
    logits_start: int
    """Logits are needed for the row's tokens [logits_start, num_tokens); equal to num_tokens when for none."""
    num_samples: int
    """The last ``num_samples`` of those positions are sampled: 0 for a chunk in mid-prompt, 1 usually, 1 + drafts.
    The sampled token of position p (its RNG position) is the one that will stand at p + 1."""
    logprob_targets: list[int] = []
    """Token that follows each non-sampled logits position: its logprob is reported (prompt logprobs)."""


class SchedulerOutput(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable snapshot of one step: the same bytes for every tensor-parallel rank."""

    step: int
    slots: list[SlotInit]
    rows: list[ScheduledRow]
    num_tokens: int
    num_logit_rows: int

    @property
    def is_decode(self) -> bool:
        """Each row has one token, whose logits are wanted."""
        return self.num_tokens == len(self.rows) == self.num_logit_rows


class RowOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner says of one row, in the order of :attr:`SchedulerOutput.rows`."""

    token_ids: list[int] = []
    """0 to ``num_samples`` tokens: fewer than asked means that drafts were rejected (or nothing could be sampled)."""
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    """One an element of ``logprob_targets``."""
    draft_token_ids: list[int] = []
    """Guesses for the tokens that follow, to be verified in the row's next step."""
    error: str | None = None
    """The row alone failed (non-finite logits); its neighbours are sound."""


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one step, one :class:`RowOutput` a scheduled row."""

    rows: list[RowOutput]
    replayed: bool = False
    """The step was a recording's, run as one call."""
    kernel_seconds: float = 0.0
    """Time that its kernels ran; on a GPU, that launching them took."""


class EncodeBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Whole sequences to encode at once, packed one behind the other without padding."""

    step: int
    token_ids: list[int]
    bounds: list[int]
    """Sequence i is ``token_ids[bounds[i]:bounds[i + 1]]``, never empty."""
    pooling: list[Pooling]
    """Of each sequence, likewise ``normalize``."""
    normalize: list[bool]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        return len(self.pooling)


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner says of one sequence, see :class:`EncodeOutput`."""

    shape: tuple[int, ...] = ()
    data: bytes = b""
    dtype: str = "float32"
    error: str | None = None
    """The sequence alone failed (its numbers are not finite); its neighbours are sound."""


class EncodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one :class:`EncodeBatch`, one :class:`Encoded` a sequence."""

    sequences: list[Encoded]
    replayed: bool = False
    """The batch was a recording's, run as one call."""
    kernel_seconds: float = 0.0
    """Time that its kernels ran; on a GPU, that launching them took."""


StepPlan = SchedulerOutput | EncodeBatch
"""What a runner is given to compute."""
