"""Configuration of an engine process."""

from __future__ import annotations

import msgspec


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
