"""``/v1/engine`` and ``/v1/engine/live``."""

from __future__ import annotations

from typing import Literal

import msgspec


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the loaded model."""

    max_model_len: int
    weights: str
    """Format of the weights."""
    kv_cache_dtype: str
    kernels: str
    device: str


class BlockCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks of the fullest KV cache group."""

    block_size: int
    """Tokens of a block."""
    total: int
    held: int
    """Blocks that requests hold, each counted once."""
    cached: int
    """Blocks that no request holds and that the prefix cache could give to one."""


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """A request under way. Nothing in it says who asks, or what."""

    number: int
    """Tells it from others."""
    yours: bool
    """Whether the caller's key made it; false on a server without keys."""
    status: str
    """`queued` or `running`."""
    seconds: float
    """Seconds since it came."""
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    blocks: int
    """Blocks that it holds; of the fullest KV cache group."""
    shared_blocks: int
    """Those of them that other sequences hold too."""


class OthersView(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of other keys, all together."""

    requests: int
    blocks: int
    """Blocks that they hold and share with nobody."""


class EngineTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the engine process started."""

    steps: int
    prompt_tokens: int
    """Prompt tokens computed, cached ones excluded."""
    generation_tokens: int
    prefix_query_tokens: int
    """Prompt tokens looked up in the prefix cache."""
    prefix_hit_tokens: int
    """Prompt tokens found there."""
    preemptions: int
    draft_tokens: int = 0
    """Tokens that were guessed and verified."""
    accepted_draft_tokens: int = 0
    """Those of them that were right."""


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine does at one moment."""

    object: Literal["engine"] = "engine"
    model: str
    state: str
    """`loading`, `ready`, `draining`, `dead`, or `idle`: not loaded."""
    time: float
    """Seconds of a clock that only goes on: rates are differences of totals by it."""
    running: int
    """Sequences that are computed."""
    waiting: int
    """Sequences that wait."""
    kv: BlockCounts
    requests: list[RequestView]
    """The caller's; on a server without keys, and to keys with scope `admin`, everybody's."""
    others: OthersView | None
    """The requests that are not listed; null where all are."""
    totals: EngineTotals
    info: EngineInfo | None
    """Null before the first start."""
