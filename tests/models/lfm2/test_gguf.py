"""An LFM2 out of a GGUF file, dense or with experts, its tensors as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import MODEL_ARCH
from transformers import PreTrainedModel

from app.checkpoints.gguf_header import read_gguf_header
from app.store.errors import StoreError
from app.store.gguf_config import config_json
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, named, write_model
from tests.models.tiny import make_reference
from tests.store.tiny import Array

EXPERTS: dict[str, Any] = {
    "expert_count": 9,
    "expert_used_count": 3,
    "expert_feed_forward_length": 36,
    "expert_gating_func": 2,
    "leading_dense_block_count": 1,
}


def tensors_of(reference: PreTrainedModel, arch: MODEL_ARCH) -> dict[str, Array]:
    """By the file's names: matrices [C, K] of convolutions, stacks of experts."""
    tensors: dict[str, Array] = {}
    for name, tensor in reference.state_dict().items():
        base = name.removesuffix("gate_up_proj").removesuffix("down_proj")
        if name.endswith("conv.conv.weight"):
            tensors[name] = tensor.squeeze(1).numpy()
        elif name.endswith("expert_bias"):
            tensors[f"{name}.bias"] = tensor.numpy()
        elif name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            tensors |= {f"{base}w1.weight": gate.numpy(), f"{base}w3.weight": up.numpy()}
        elif name.endswith("experts.down_proj"):
            tensors[f"{base}w2.weight"] = tensor.numpy()
        elif name != "lm_head.weight" or not reference.config.tie_word_embeddings:
            tensors[name] = tensor.numpy()
    head = tensors.pop("lm_head.weight", None)
    experts = {name: tensors.pop(name) for name in list(tensors) if ".experts." in name}
    parts = {"w1": "gate", "w2": "down", "w3": "up"}
    files = {
        f"blk.{name.split('.')[2]}.ffn_{parts[name.split('.')[-2]]}_exps.weight": values
        for name, values in experts.items()
    }
    return named(arch, tensors) | files | ({} if head is None else {"output.weight": head})


def write(path: Path, variant: str, **metadata: Any) -> tuple[Path, PreTrainedModel]:
    reference = make_reference(variant, vocab_size=VOCAB_SIZE)
    config = reference.config
    sparse = config.model_type == "lfm2_moe"
    arch = MODEL_ARCH.LFM2MOE if sparse else MODEL_ARCH.LFM2
    tensors = tensors_of(reference, arch)
    kinds = config.layer_types
    fields = {
        "attention.head_count_kv": [config.num_key_value_heads if kind != "conv" else 0 for kind in kinds],
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "feed_forward_length": tensors["blk.0.ffn_gate.weight"].shape[0],
        "rope.freq_base": 1_000_000.0,
        "shortconv.l_cache": config.conv_L_cache,
        "tokenizer.ggml.pre": "lfm2",
        **(EXPERTS if sparse else {}),
        **metadata,
    }
    config.rms_norm_eps = config.norm_eps  # by which name others ask
    return write_model(path, reference, arch, fields, tensors=tensors), reference


@pytest.mark.parametrize("variant", ["lfm2", "lfm2_biases", "lfm2_moe"])
def test_a_file_is_the_model_it_was_written_of(tmp_path: Path, variant: str) -> None:
    is_the_model(*write(tmp_path / "m.gguf", variant))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"attention.head_count_kv": [0, 2, 0, 4]}, r"attention\.head_count_kv = \[0, 2, 0, 4\]"),
        ({"attention.head_count_kv": [0, 0, 0, 0]}, r"attention\.head_count_kv = \[0, 0, 0, 0\]"),
        ({"attention.sliding_window": 24}, r"attention\.sliding_window"),
        ({"expert_gating_func": 1}, "expert_gating_func = 1"),
        ({"expert_weights_scale": 2.5}, "expert_weights_scale"),
        ({"shortconv.l_cache": None}, r"shortconv\.l_cache"),
    ],
)
def test_what_is_not_read_is_an_error(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    file, _ = write(tmp_path / "m.gguf", "lfm2_moe", **metadata)
    with pytest.raises(StoreError, match=message):
        config_json(read_gguf_header(file))
