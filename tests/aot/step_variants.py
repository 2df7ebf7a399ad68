"""The launches of whole steps of large models, as the runner makes them; see ``compiling``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from app.contract.config import EngineConfig
from app.contract.request import SamplingParams
from app.contract.step import ScheduledRow, StepPlan
from app.kernels.backend import choose_backend
from app.kernels.gpu.launch import Launch, collecting
from app.models.architectures import find
from app.quant.placement import Placement, WeightFormat
from app.runner.kv_plan import plan_kv_cache
from app.runner.loading import read_model_config
from app.runner.model_runner import ModelRunner
from tests.aot import compiling
from tests.runner.steps import row_of, slot_of, step_of

META = torch.device("meta")
SHAPE: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 1,  # all layers start the same
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "intermediate_size": 14336, "vocab_size": 128256}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "intermediate_size": 12288, "vocab_size": 151936}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 50257}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
}
WINDOWED = {
    "num_hidden_layers": 2,
    "use_sliding_window": True,
    "sliding_window": 256,
    "layer_types": ["full_attention", "sliding_attention"],
}
QWEN3_5 = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "sliding_window": 256,
    "sliding_window_pattern": 2,
    "tie_word_embeddings": True,
}
GEMMA4 = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "sliding_window": 512,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
GEMMA4_EXPERTS = {
    **GEMMA4,
    "hidden_size": 2816,
    "hidden_size_per_layer_input": 0,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
}
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 8192,
    "sliding_window": 256,
    "tie_word_embeddings": True,
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 2,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 151936,
}
GPT_NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "intermediate_size": 16384,
    "vocab_size": 50257,
    "hidden_act": "gelu",
}
# Four vocabularies between them, each of another number of pieces to sample from: a further one is seven launches.
MODELS = [
    (LLAMA, WeightFormat.PLAIN, "bfloat16"),
    (QWEN3, WeightFormat.W8A8, "int8"),
    ({**QWEN3, **WINDOWED}, WeightFormat.PLAIN, "bfloat16"),
    (QWEN3_5, WeightFormat.W8A8, "bfloat16"),
    (QWEN3_MOE, WeightFormat.PLAIN, "bfloat16"),
    (QWEN3_MOE, WeightFormat.W8A8, "int8"),
    (GPT2, WeightFormat.PLAIN, "bfloat16"),
    (GPT2, WeightFormat.W8A8, "int8"),
    (GEMMA3, WeightFormat.PLAIN, "bfloat16"),
    (GEMMA3, WeightFormat.W8A8, "int8"),
    (GEMMA4, WeightFormat.W8A8, "int8"),
    (GEMMA4_EXPERTS, WeightFormat.PLAIN, "bfloat16"),
    (GEMMA2, WeightFormat.PLAIN, "bfloat16"),
    (GEMMA2, WeightFormat.W8A8, "int8"),
    (GPT_OSS, WeightFormat.PLAIN, "bfloat16"),
    (GPT_OSS, WeightFormat.W8A8, "int8"),
    (GPT_NEOX, WeightFormat.PLAIN, "bfloat16"),
    (GPT_NEOX, WeightFormat.W8A8, "int8"),
]
CHUNK = 512
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, logprobs=5)


def runner_of(shape: dict[str, Any], weights: WeightFormat, pages: str) -> ModelRunner:
    """A runner whose weights and pages have shapes alone."""
    config = EngineConfig(
        model_dir="meta",
        device="meta",
        dtype="bfloat16",
        kv_cache_dtype=pages,
        num_blocks=4096,
        max_num_seqs=64,
        max_num_batched_tokens=1024,
        max_logit_rows=64,
        enforce_eager=True,  # each step's own launches, not those of the size that it would be padded to
    )
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps({**SHAPE, **shape}))
        model_config = read_model_config(Path(directory))
    plan = plan_kv_cache(model_config, config)
    placement = Placement(torch.bfloat16, META, weights)
    model = find(model_config.architecture).build(
        model_config, max_positions=plan.max_model_len, placement=placement.for_model()
    )
    return ModelRunner(model, model_config, plan, config, choose_backend(META))


def prefill(slot: int, num_groups: int, num_tokens: int = CHUNK) -> ScheduledRow:
    """The first tokens of a prompt, with the blocks of a chunk and a token behind it."""
    blocks = range(slot * 64, slot * 64 + CHUNK // 16 + 1)
    return row_of(slot, 0, [1] * num_tokens, groups=[blocks] * num_groups)


def decode(slot: int) -> ScheduledRow:
    """A token behind that chunk."""
    return row_of(slot, CHUNK, None, groups=[])


def steps(num_groups: int) -> list[StepPlan]:
    """A prompt alone, one with a decode beside it, and many; then decodes of few and of many.

    Args:
        num_groups: of the model's KV cache.
    """
    slots = [slot_of(slot, [1] * CHUNK, SAMPLED) for slot in range(64)]
    first = step_of([prefill(0, num_groups)], slots[:1])
    mixed = step_of([decode(0), prefill(1, num_groups)], slots[1:2])
    others = step_of([decode(0), *(prefill(slot, num_groups, 16) for slot in range(2, 64))], slots[2:])
    return [first, mixed, others, step_of([decode(2)]), step_of([decode(slot) for slot in range(64)])]


def launches() -> list[Launch]:
    """Of all models and steps."""
    with collecting() as collected:
        for model in MODELS:
            runner = runner_of(*model)
            for step in steps(len(runner.info.kv_cache.groups)):
                runner.submit(step)
    return collected


if __name__ == "__main__":
    compiling.main(launches)
