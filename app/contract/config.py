"""Configuration of an engine process."""

from __future__ import annotations

import msgspec

ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,127}"
"""Pattern of an adapter's name."""


class AdapterSource(msgspec.Struct, frozen=True):
    """An adapter that requests may ask for."""

    name: str
    path: str
    """Its directory, absolute."""
    required: bool = True
    """Whether an engine that cannot load it does not start; otherwise it starts without."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine process needs to know; the first frame that it is sent."""

    model_dir: str
    """Directory with ``config.json`` and the weights (safetensors or one ``.gguf``)."""
    weights: tuple[str, ...] = ()
    """Weight files, absolute; empty with ``load_format="dummy"``."""
    via: str | None = None
    """Which library computes the model: ``transformers``; None: tuili does."""
    load_format: str = "auto"
    """``auto`` reads the weights, ``dummy`` makes random ones from the config."""
    device: str = "cpu"
    """Where the model runs: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``, a GPU where there is one."""
    dtype: str = "float32"
    """Dtype of activations, and of weights that are not quantised; ``auto`` leaves it to device and quantisation."""
    quantization: str = "none"
    """Format of the weights: ``none``, ``int8`` (activations too), ``int8_weight_only``, ``file`` (a GGUF
    file's blocks as they are), or ``auto``: int8 where the native kernels run and ``dtype`` is ``auto`` too."""
    kv_cache_dtype: str = "auto"
    """Dtype of keys and values; ``auto``: that of the native kernels' packed weights, int8 or bfloat16, where there are
    any, ``dtype`` otherwise."""
    packed_cache: str | None = None
    """Directory that keeps weights in the native kernels' layout, so that the next start need not make them again."""
    block_size: int = 16
    """Tokens of a block of the KV cache."""
    kv_cache_memory: int | None = None
    """Bytes for the paged KV cache of each rank, all layers together; None: 1 GiB on a CPU, on a GPU all that is left
    there."""
    num_blocks: int | tuple[int, ...] | None = None
    """Exact number of KV blocks, of every KV cache group or of each, instead of a memory budget (tests)."""
    max_model_len: int | None = None
    """Tokens of the longest sequence; None: the model's own context length, cut to what the KV cache can hold."""
    max_num_seqs: int = 64
    """Rows of a step, and slots of the runner."""
    max_num_batched_tokens: int = 1024
    """Token budget of one step."""
    max_queued_encode_tokens: int = 1 << 20
    """Tokens of all sequences that may wait to be encoded; sequences beyond that are refused."""
    max_logit_rows: int = 256
    """Rows of logits one step may ask for; bounds the [rows, vocab] buffer."""
    enable_prefix_caching: bool = True
    """Whether requests start from blocks that other requests with the same prefix have computed."""
    prefix_cache_ram: int | None = None
    """Bytes of memory for blocks that the KV cache gives up; None: there is no such tier."""
    prefix_cache_dir: str | None = None
    """Directory that keeps blocks, absolute; None: there is no such tier."""
    prefix_cache_disk: int | None = None
    """Bytes of all files in that directory, at most; None: 8 GiB."""
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
    """Which kernels run: ``auto``, ``reference`` (plain torch) or ``strict`` (the device's fast ones or an error)."""
    seed: int = 0
    """Seed of dummy weights."""
    draft: str = "none"
    """Who guesses tokens ahead, which a step then verifies: ``none``, ``lookup`` (what followed the same tokens before
    in the request's own text) or ``history`` (or in recent answers to the same tenant)."""
    max_draft_tokens: int = 8
    """Guesses that a row verifies, at most."""
    draft_ngram: int = 3
    """Tokens that have to be the same for what followed them to be a guess."""
    adapters: tuple[AdapterSource, ...] = ()
    """Adapters that are loaded at the start."""
    max_adapters: int = 0
    """Adapters that there is room for at once; 0: none are served, and steps have nothing of them."""
    max_adapter_rank: int | None = None
    """Greatest rank of an adapter; None: that of those which are loaded at the start, 16 at least."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a request, unless it ignores them."""
    integrity_checks: bool = False
    """Check the block allocator's invariants whenever the engine goes idle."""
