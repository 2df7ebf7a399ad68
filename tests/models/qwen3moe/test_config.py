"""A Qwen3-MoE's ``config.json`` and GGUF metadata: which layers have experts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.checkpoints.gguf_header import read_gguf_header
from app.kernels.route import MAX_EXPERTS as MAX_CHOSEN_AMONG
from app.models.architectures import parse_config
from app.models.config import ConfigError, ExpertsConfig, MlpConfig
from app.models.reading_experts import MAX_EXPERTS
from app.store.errors import StoreError
from app.store.gguf_config import config_json
from tests.models.test_config import QWEN3_MOE, windows_of
from tests.store.tiny import write_gguf


def experts_of(**fields: Any) -> list[int]:
    """Of which layers."""
    model = parse_config({**QWEN3_MOE, "num_hidden_layers": 6, **fields})
    return [index for index, layer in enumerate(model.layers) if isinstance(layer.mlp, ExpertsConfig)]


def test_the_published_shape() -> None:
    model = parse_config(QWEN3_MOE)
    assert {layer.mlp for layer in model.layers} == {ExpertsConfig(count=128, chosen=8, width=768, normalise=True)}
    attention = model.attentions[0]
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (32, 4, 128)
    assert attention.qk_norm
    assert not attention.qkv_bias


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"decoder_sparse_step": 2}, [1, 3, 5]),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [5, 0]}, [2]),
        ({"mlp_only_layers": [0, 1, 2, 3, 4, 5, 6]}, []),
        ({"num_experts": 0}, []),
        ({"num_experts": None, "num_local_experts": 16}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_which_layers_have_experts(fields: dict[str, Any], layers: list[int]) -> None:
    assert experts_of(**fields) == layers


def test_other_layers_are_dense() -> None:
    model = parse_config({**QWEN3_MOE, "mlp_only_layers": [0]})
    assert model.layers[0].mlp == MlpConfig(width=6144)


def test_all_layers_slide_or_none() -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 40, "num_hidden_layers": 3}
    assert windows_of(parse_config({**QWEN3_MOE, **sliding})) == (24,) * 3
    assert windows_of(parse_config({**QWEN3_MOE, "num_hidden_layers": 3})) == (None,) * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_local_experts": 64}, "num_experts = 128 and num_local_experts = 64"),
        ({"num_experts": MAX_EXPERTS + 1}, "num_experts = 1025"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok = 129"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob"),
        ({"mlp_only_layers": 3}, "mlp_only_layers"),
        ({"n_routed_experts": 8}, "n_routed_experts"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "qwen3"}, "model_type"),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 24,
                "layer_types": ["full_attention", *["sliding_attention"] * 47],
            },
            "layer_types",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_config({**QWEN3_MOE, **fields})
    assert "\n" not in str(error.value)


def test_the_bound_is_that_of_the_kernels() -> None:
    assert MAX_EXPERTS == MAX_CHOSEN_AMONG


GGUF = {
    "qwen3moe.expert_count": 16,
    "qwen3moe.expert_used_count": 4,
    "qwen3moe.expert_feed_forward_length": 32,
}


def test_metadata_of_a_gguf_file(tmp_path: Path) -> None:
    header = read_gguf_header(write_gguf(tmp_path / "m.gguf", arch="qwen3moe", extra=GGUF))
    model = parse_config(config_json(header))
    assert {layer.mlp for layer in model.layers} == {ExpertsConfig(count=16, chosen=4, width=32, normalise=True)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"qwen3moe.expert_used_count": None}, "expert_used_count"),
        ({"qwen3moe.expert_shared_count": 1}, "expert_shared_count = 1"),
        ({"qwen3moe.expert_gating_func": 2}, "expert_gating_func = 2"),
        ({"qwen3moe.expert_weights_scale": 2.5}, "expert_weights_scale"),
        ({"qwen3moe.attention.sliding_window": 16}, "sliding_window"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    header = read_gguf_header(write_gguf(tmp_path / "m.gguf", arch="qwen3moe", extra={**GGUF, **extra}))
    with pytest.raises(StoreError, match=rf"m\.gguf: .*{message}"):
        config_json(header)
