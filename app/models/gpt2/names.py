"""What a GPT-2's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader
from app.models.gguf_names import GGUFNames, GGUFTensor
from app.models.names import DecoderNames, FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    width = reader.integer("embedding_length")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": reader.integer("context_length"),
        "n_embd": width,
        "n_layer": reader.integer("block_count"),
        "n_head": reader.integer("attention.head_count"),
        "n_inner": reader.integer("feed_forward_length"),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": reader.number("attention.layer_norm_epsilon"),
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(
        base="transformer.",
        embedding="transformer.wte",
        positions="transformer.wpe",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        mixer_norm="ln_1",
        mixers={"attention": "attn"},
        mlp_norm="ln_2",
        # The causal mask, and what it puts in place of a score.
        computed=(".attn.bias", ".attn.masked_bias"),
    ),
    gguf=GGUFNames(
        model={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layer={
            "attn_norm": "ln_1",
            "attn_qkv": GGUFTensor("attn.c_attn", transposed=True),
            "attn_output": GGUFTensor("attn.c_proj", transposed=True),
            "ffn_norm": "ln_2",
            "ffn_up": GGUFTensor("mlp.c_fc", transposed=True),
            "ffn_down": GGUFTensor("mlp.c_proj", transposed=True),
        },
        layers="transformer.h",
    ),
    gguf_config=_config,
)
