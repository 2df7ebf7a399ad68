"""What a family's files call things: tensors of checkpoints, tensors and metadata of GGUF files (torch-free)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.models.gguf_config import GGUFReader
    from app.models.gguf_names import GGUFNames


EXPERT_STACKS: Mapping[str, tuple[str, ...]] = {
    "mlp.experts.gate_up_proj": ("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.{expert}.down_proj.weight",),
}
"""As transformers 5 keeps experts in memory; most checkpoints have a tensor for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderNames:
    """Modules of a decoder as its checkpoints call them; the defaults are those of most."""

    base: str = ""
    """Prefix of all but the head, dot included, for which some of the family's checkpoints have another."""
    other_base: str = ""
    """That one; empty where they leave it out."""
    embedding: str = "model.embed_tokens"
    positions: str = "model.embed_positions"
    """The table of learned positions, of a model that has one."""
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    # Below ``{layers}.{index}``:
    mixer_norm: str = "input_layernorm"
    mixers: Mapping[str, str] = field(default_factory=lambda: {"attention": "self_attn", "delta": "linear_attn"})
    """By kind of the mixer's config."""
    mixer_post_norm: str = "post_attention_layernorm"
    """Of layers that norm what the mixer made."""
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"
    mlp_post_norm: str = "post_feedforward_layernorm"
    """Of layers that norm what the feed-forward part made."""
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tensors [X, N, K] that checkpoints may hold of all X experts of a layer -> the tensors of an ``{expert}`` that
    are meant, which share its N rows in equal parts."""
    computed: tuple[str, ...] = (".rotary_emb.inv_freq",)
    """Ends of the names of tensors that checkpoints may hold and nothing reads."""
    beside: tuple[str, ...] = ()
    """Prefixes, dot included, of what checkpoints may hold beside the decoder: what sees images, drafts tokens, …"""

    @property
    def embedding_weight(self) -> str:
        """Name of the token embedding."""
        return f"{self.embedding}.weight"

    @property
    def head_weight(self) -> str:
        """Name of the output head."""
        return f"{self.head}.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyNames:
    """A family's ``names.NAMES``."""

    checkpoint: DecoderNames = DecoderNames()
    gguf: GGUFNames | None = None
    """Of a family that has GGUF files, likewise ``gguf_config``."""
    gguf_config: Callable[[GGUFReader], dict[str, Any]] | None = None
    """Makes a ``config.json`` of the metadata, all but ``tie_word_embeddings`` and ``vocab_size``.

    Raises:
        ConfigError: a field is missing, malformed or not supported.
    """
    gguf_end_tokens: tuple[str, ...] = ()
    """Control tokens that end an answer although GGUF files need not say so."""
