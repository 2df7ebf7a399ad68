"""What a family's files call things: tensors of checkpoints, tensors and metadata of GGUF files (torch-free)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.models.gguf_config import GGUFReader
    from app.models.gguf_names import GGUFNames


@dataclass(frozen=True, slots=True)
class StoredParts:
    """The tensors that one of a checkpoint stands for."""

    parts: tuple[str, ...]
    """Their names; they share the tensor's N rows in equal parts. With an ``{expert}`` in them and none in its own
    name, the tensor is a stack [X, N, ...] of all X experts."""
    dims: int = 3
    """Dimensions of a stack; what has another number is none."""
    interleaved: bool = False
    """The parts' rows stand in turns in a stack; otherwise those of one part behind those of the one before."""
    transposed: bool = False
    """A stack is [X, K, N]."""


EXPERT_STACKS: Mapping[str, StoredParts] = {
    "mlp.experts.gate_up_proj": StoredParts(
        ("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight")
    ),
    "mlp.experts.down_proj": StoredParts(("mlp.experts.{expert}.down_proj.weight",)),
    "mlp.experts.{expert}.gate_up_proj.weight": StoredParts(
        ("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight")
    ),
}
"""Tensors of several experts, or of two projections of one, as transformers 5 has them in memory and GGUF files may;
most checkpoints have a tensor for each."""
SHARED_EXPERTS: Mapping[str, StoredParts] = {
    f"mlp.shared_experts.{part}_proj.weight": StoredParts((f"mlp.shared_expert.{part}_proj.weight",))
    for part in ("gate", "up", "down")
}
"""Tensors of an MLP that every token goes through, of checkpoints that call it several experts: it is as wide as those
together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderNames:
    """Modules of a decoder as its checkpoints call them; the defaults are those of most."""

    base: str = ""
    """Prefix of all names but the head's, dot included, in place of which some checkpoints have ``other_base``."""
    other_base: str = ""
    """The prefix that some checkpoints have in place of ``base``; empty: they have none."""
    embedding: str = "model.embed_tokens"
    positions: str = "model.embed_positions"
    """The table of learned positions, of a model that has one."""
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    other_head: str = ""
    """What some of the family's checkpoints call the head instead."""
    # Below ``{layers}.{index}``:
    mixer_norm: str = "input_layernorm"
    mixers: Mapping[str, str] = field(
        default_factory=lambda: {
            "attention": "self_attn",
            "latent": "self_attn",
            "delta": "linear_attn",
            "conv": "conv",
        }
    )
    """Names of mixers, by the kind of their config."""
    mixer_post_norm: str = "post_attention_layernorm"
    """The norm of the mixer's result, in layers that have one."""
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"
    mlp_post_norm: str = "post_feedforward_layernorm"
    """The norm of the feed-forward part's result, in layers that have one."""
    factor: str = "layer_scalar"
    """The factor on the stream behind a layer, in layers that have one: a tensor's whole name."""
    stacks: Mapping[str, StoredParts] = field(default_factory=dict)
    """Tensors of a layer that checkpoints may hold under other names, or several in one, by the ends of their names. An
    ``{expert}`` in a name stands for one tensor of each expert."""
    computed: tuple[str, ...] = (".rotary_emb.inv_freq",)
    """Ends of the names of tensors that checkpoints may hold and nothing reads."""
    beside: tuple[str, ...] = ()
    """Prefixes, dot included, of what checkpoints may hold beside the decoder: what sees images, drafts tokens, …"""

    drafts_behind: bool = False
    """Whether checkpoints may hold one more layer behind the last, which drafts tokens."""

    @property
    def embedding_weight(self) -> str:
        """Name of the token embedding."""
        return f"{self.embedding}.weight"

    @property
    def head_weight(self) -> str:
        """Name of the output head."""
        return f"{self.head}.weight"

    @property
    def other_head_weights(self) -> tuple[str, ...]:
        """Other names of the output head, if there are any."""
        return (f"{self.other_head}.weight",) if self.other_head else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyNames:
    """A family's ``names.NAMES``."""

    checkpoint: DecoderNames = DecoderNames()
    gguf: GGUFNames | None = None
    """Names in GGUF files; None: the family has none."""
    gguf_config: Callable[[GGUFReader], dict[str, Any]] | None = None
    """Makes a ``config.json`` of GGUF metadata, all but ``tie_word_embeddings`` and ``vocab_size``.

    Raises:
        ConfigError: a field is missing, malformed or not supported.
    """
    gguf_end_tokens: tuple[str, ...] = ()
    """Control tokens that end an answer although GGUF files need not say so."""
    gguf_tokens_before_space: tuple[str, ...] | None = None
    """Control tokens behind which white space counts, of a family all of whose others swallow what follows them, in
    SentencePiece vocabularies: GGUF files do not say so. None: it counts behind all."""
