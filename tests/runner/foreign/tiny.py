"""Tiny random models of families that transformers has, and what it generates with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.byte_tokenizer import VOCAB_SIZE

CONTEXT = 256
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    # Biases by distance, no positions in the config.
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    # Learned positions behind an offset.
    "opt": (
        "OPT",
        {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "gptj": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": CONTEXT}),
    # Recurrent states, which it forgets when it is given several tokens behind them.
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    # States beside keys and values, and experts.
    "jamba": (
        "Jamba",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4,
        },
    ),
    # The same with positions, which it takes to begin at 0 in every row unless it is told them.
    "bamba": (
        "Bamba",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
            "attn_layer_indices": [1],
        },
    ),
    # States in a list, not in a cache.
    "rwkv": ("Rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}),
    # Windows, keys and values of which are cut off.
    "mistral": (
        "Mistral",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "sliding_window": 12,
        },
    ),
    # Keeps nothing at all.
    "openai-gpt": ("OpenAIGPT", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
}  # fmt: skip
"""Beginnings of the names of transformers' classes, and shapes."""
SHARED = {"vocab_size": VOCAB_SIZE, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}


def make(kind: str, seed: int = 0, **shape: Any) -> Any:
    """A model with weights so large that its tokens differ."""
    name, fields = KINDS[kind]
    sizes = {"max_position_embeddings": CONTEXT} if kind in ("opt", "mistral") else {}
    config = getattr(transformers, f"{name}Config")(**SHARED | sizes | fields | shape)
    model_class = getattr(transformers, f"{name}LMHeadModel", None) or getattr(transformers, f"{name}ForCausalLM")
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3, generator=generator)
    return model


def generated(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The next ``count`` tokens, greedily, by transformers' own loop."""
    ids = torch.tensor([list(prompt)])
    model.generation_config.eos_token_id = None
    out: Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def logprobs(model: Any, token_ids: Sequence[int]) -> Tensor:
    """Log-probabilities [token, vocabulary] of what follows each token."""
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([list(token_ids)])).logits[0].float(), -1)


def save(model: Any, directory: Path) -> Path:
    """A checkpoint of the model, without a tokenizer."""
    model.save_pretrained(directory)
    return directory
