"""What a GPT-NeoX's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.config_fields import ConfigError
from app.models.gguf_config import GGUFReader, rope_scaling_json
from app.models.gguf_names import Floats, GGUFNames, GGUFTensor, Header, TensorInfo
from app.models.names import DecoderNames, FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    hidden, heads = reader.integer("embedding_length"), reader.integer("attention.head_count")
    if heads <= 0 or hidden <= 0 or hidden % heads:
        raise reader.error(f"{heads} attention heads for a width of {hidden}")
    head_dim = hidden // heads
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": reader.integer("feed_forward_length"),
        "num_hidden_layers": reader.integer("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": reader.integer("context_length"),
        "hidden_act": "gelu",
        "layer_norm_eps": reader.number("attention.layer_norm_epsilon"),
        "attention_bias": "blk.0.attn_qkv.bias" in reader.header.tensors,
        "use_parallel_residual": reader.flag("use_parallel_residual", default=True),
        "rotary_emb_base": reader.number("rope.freq_base", 10_000.0),
        "rotary_pct": reader.integer("rope.dimension_count", head_dim) / head_dim,
        "rope_scaling": rope_scaling_json(reader, head_dim),
    }


def _by_head(header: Header, entry: TensorInfo, values: Floats) -> Floats:
    """For all queries, then all keys, then all values: those of a head side by side."""
    heads = GGUFReader(header).integer("attention.head_count")
    if heads <= 0 or len(values) % (3 * heads):
        raise ConfigError(
            f"{header.path}: tensor {entry.name!r} has {len(values)} rows, which are not 3 * {heads} heads"
        )
    return values.reshape(3, heads, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


NAMES = FamilyNames(
    checkpoint=DecoderNames(
        base="gpt_neox.",
        embedding="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        mixers={"attention": "attention"},
        # The causal mask, and what it puts in place of a score.
        computed=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    ),
    gguf=GGUFNames(
        model={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layer={
            "attn_norm": "input_layernorm",
            "attn_qkv": GGUFTensor("attention.query_key_value", _by_head, whole=True),
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        layers="gpt_neox.layers",
    ),
    gguf_config=_config,
)
