"""Tiny random models of each supported shape, and their paged execution, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from app.checkpoints.loader import load_weights
from app.contract.step import ScheduledRow
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.types import LayerKVCache, LayerState, StepArena
from app.layers.config import AttentionConfig, MixerConfig
from app.models.architectures import find, parse_config
from app.models.base import Decoder
from app.models.config import ModelConfig
from app.quant.placement import Placement
from app.runner.input_batch import InputBatch
from tests.fakes import kv_group
from tests.runner.steps import row_of, step_of

CPU = torch.device("cpu")
BLOCK_SIZE = 16
CONTEXT = 256
_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    # Wide enough for attention to be far from uniform.
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LAYER_TYPES = ["full_attention", "sliding_attention", "full_attention"]
_SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
_HEAD_10 = {"hidden_size": 60}
_HEAD_16 = {"head_dim": 16}
_DELTA: dict[str, Any] = {
    "hidden_size": 64,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "full_attention_interval": 2,
    # At twice as much fp32 itself, transformers' chunks of tokens too, is 1e-4 from the numbers in float64.
    "initializer_range": 0.1,
}
_NEXT = {**_DELTA, "num_experts": 0}
_NORMS = ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
_MOE = {"num_experts": 9, "num_experts_per_tok": 3, "moe_intermediate_size": 36}
_MOE_MIXED = {
    "num_hidden_layers": 5,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [3],
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "use_sliding_window": True,
    "sliding_window": 24,
    "tie_word_embeddings": True,
}
"""Experts in the second layer alone, their weights not normalised."""
_GEMMA3 = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "sliding_window_pattern": 2,
    "tie_word_embeddings": True,
}
_GEMMA3_256 = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 128,
    "sliding_window_pattern": 3,
    "attention_bias": True,
    "rope_parameters": {"full_attention": _LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
}
Variant = tuple[type[PreTrainedConfig], dict[str, Any]]
"""transformers' config of a family, and its fields beside those of every tiny model."""
VARIANTS: dict[str, Variant] = {
    "gemma3": (Gemma3TextConfig, _GEMMA3),
    "gemma3_256": (Gemma3TextConfig, {**_GEMMA3, **_GEMMA3_256}),
    "llama": (LlamaConfig, {**_HEAD_10, "tie_word_embeddings": True}),
    "llama_biases": (LlamaConfig, {**_HEAD_10, "attention_bias": True, "mlp_bias": True}),
    "llama_linear": (LlamaConfig, {**_HEAD_10, "rope_parameters": _LINEAR}),
    "llama_llama3": (LlamaConfig, {**_HEAD_10, "rope_parameters": _LLAMA3}),
    "llama_yarn": (LlamaConfig, {**_HEAD_10, "rope_parameters": _YARN}),
    "mistral": (MistralConfig, {**_HEAD_16, "sliding_window": 24}),
    "ministral": (MinistralConfig, {**_HEAD_16, "sliding_window": 24, "layer_types": _LAYER_TYPES}),
    "mistral_full": (MistralConfig, {**_HEAD_16, "sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {**_HEAD_10, "tie_word_embeddings": True}),
    "qwen2_sliding": (Qwen2Config, {**_HEAD_10, **_SLIDING}),
    "qwen3": (Qwen3Config, _HEAD_16),
    "qwen3moe": (Qwen3MoeConfig, {**_HEAD_16, **_MOE, "norm_topk_prob": True}),
    "qwen3moe_mixed": (Qwen3MoeConfig, {**_HEAD_16, **_MOE, **_MOE_MIXED}),
    "qwen3_biases": (Qwen3Config, {**_HEAD_16, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3_next": (Qwen3NextConfig, _NEXT),
    "qwen3_next_biases": (Qwen3NextConfig, {**_NEXT, "attention_bias": True}),
    "qwen3_5": (Qwen3_5TextConfig, {**_DELTA, "linear_conv_kernel_dim": 3, "tie_word_embeddings": True}),
    "gpt2": (GPT2Config, {"num_attention_heads": 4, "tie_word_embeddings": True}),
    # Heads of five; scores that hang on the layer alone.
    "gpt2_scales": (
        GPT2Config,
        {
            "hidden_size": 30,
            "n_inner": 52,
            "activation_function": "gelu",
            "layer_norm_epsilon": 0.01,
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
        },
    ),
}


def make_reference(variant: str | Variant, **overrides: object) -> PreTrainedModel:
    """transformers' model of a variant, or of the one of that name; random weights, biases and norms included, the same
    in every call."""
    config_class, changes = VARIANTS[variant] if isinstance(variant, str) else variant
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    shape = {name: value for name, value in _SHAPE.items() if name in known}
    config = config_class(**{**shape, **changes, **overrides})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif name.endswith(_NORMS):
                neutral = round(parameter.mean().item())  # 0 where the model multiplies by 1 + w
                parameter.uniform_(neutral - 0.5, neutral + 0.5)
    return model.eval()


def save(reference: PreTrainedModel, directory: Path) -> Path:
    """Writes config.json and safetensors, like a published checkpoint; returns ``directory``."""
    reference.save_pretrained(directory)
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, ModelConfig]:
    """The served model out of a checkpoint directory, by the way the runner takes."""
    config = parse_config(json.loads((directory / "config.json").read_text()))
    family = find(config.architecture)
    model = family.build(config, max_positions=CONTEXT, placement=Placement(dtype, CPU))
    load_weights(
        model.destinations(),
        sorted(directory.glob("*.safetensors")),
        ignore=model.ignores,
        twins=model.twins(),
        stacks=family.names.checkpoint.stacks,
        progress=_no_progress,
    )
    return model, config


def _no_progress(done: int, total: int) -> None:
    """Loading a tiny model is over before anybody looks."""


def reference_logits(reference: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """[T, V] fp32: transformers' logits at every position, in one go."""
    with torch.no_grad():
        output = reference(torch.tensor([list(token_ids)]), use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def nobodys_pages(mixer: MixerConfig, num_blocks: int, dtype: torch.dtype) -> LayerKVCache | LayerState:
    """A layer's pages, of which nothing has been written."""

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.full((num_blocks, *shape), torch.nan, dtype=dtype)

    if isinstance(mixer, AttentionConfig):
        return LayerKVCache(new(2, mixer.num_kv_heads, BLOCK_SIZE, mixer.head_dim))
    channels = 2 * mixer.num_k_heads * mixer.k_dim + mixer.num_v_heads * mixer.v_dim
    matrices = new(mixer.num_v_heads, mixer.k_dim, mixer.v_dim, dtype=torch.float32)
    return LayerState(new(mixer.conv_width - 1, channels), matrices, BLOCK_SIZE)


class PagedExecution:
    """Runs a model over paged keys and values, step by step, as the runner does; logits of every token."""

    def __init__(
        self, model: Decoder, config: ModelConfig, dtype: torch.dtype = torch.float32, num_blocks: int = 64
    ) -> None:
        self._model = model
        self._vocab_size = config.vocab_size
        self._arena = StepArena(CONTEXT, CPU)
        self._last_token = torch.zeros(8, dtype=torch.int64)
        self._batch = InputBatch(
            [kv_group("full", num_blocks)],
            num_slots=8,
            max_tokens=CONTEXT,
            max_logit_rows=CONTEXT,
            max_model_len=CONTEXT,
            block_size=BLOCK_SIZE,
            device=CPU,
        )
        attention = config.attentions[0]
        # What nobody wrote must not be read: it would show in every logit.
        heads = (attention.num_heads, attention.num_kv_heads, attention.head_dim)
        self._split_workspace = new_split_workspace(8, *heads, CPU).fill_(torch.nan)
        self.kv = [nobodys_pages(layer.mixer, num_blocks, dtype) for layer in config.layers]

    @torch.inference_mode()
    def step(self, rows: Sequence[ScheduledRow]) -> Tensor:
        """[L, V]: logits that the rows ask for."""
        inputs = self._batch.prepare(step_of(rows))
        self._batch.expand(inputs, self._last_token)
        tokens = inputs.tokens
        self._arena.begin(tokens.token_ids.numel())
        metas = [replace(inputs.metas[0], split_workspace=self._split_workspace)] * len(self.kv)
        hidden = self._model.forward(tokens.token_ids, tokens.positions, self.kv, metas, self._arena)
        logits = torch.full((tokens.logit_indices.numel(), self._vocab_size), torch.nan)
        self._model.logits(hidden, tokens.logit_indices, logits, self._arena)
        return logits

    def sequence(self, token_ids: Sequence[int], chunks: Sequence[int], blocks: Sequence[int], slot: int = 0) -> Tensor:
        """[T, V]: logits at every position of one sequence computed in steps of ``chunks`` tokens."""
        logits, start, held = [], 0, 0
        for size in chunks:
            end = start + size
            needed = -(-end // BLOCK_SIZE)
            row = row_of(slot, start, token_ids[start:end], blocks=blocks[held:needed], num_logits=size)
            logits.append(self.step([row]))
            start, held = end, needed
        return torch.cat(logits)
