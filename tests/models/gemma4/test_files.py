"""A Gemma 4 out of the files of others: of a model that sees and hears too, llama.cpp's, int8 ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, TokenType
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText, Gemma4Config, PreTrainedModel

from app.checkpoints.gguf_header import read_gguf_header
from app.models.gemma4.names import NAMES
from app.quality.quantize import write
from app.store.errors import StoreError
from app.store.files import find_weights, read_model
from app.store.gguf_config import config_json
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.gguf_model import VOCAB_SIZE, check_same, resolved, write_model
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS, close
from tests.models.tiny import PagedExecution, load, make_reference
from tests.runner.driver import runner_of
from tests.store.tiny import Array, write_tokenizer

VARIANTS = ["gemma4", "gemma4_dense", "gemma4_experts"]


def shape(name: str) -> dict[str, Any]:
    return {"vocab_size": VOCAB_SIZE, **({"vocab_size_per_layer_input": VOCAB_SIZE} if name == "gemma4" else {})}


def reference_of(name: str, **changes: Any) -> PreTrainedModel:
    """Of the tests' vocabulary; its config tells the sizes of most layers."""
    reference = make_reference(name, **{**shape(name), **changes})
    reference.config.allow_global_per_layer_attribute_access = True
    return reference


def tensors_of(reference: PreTrainedModel) -> dict[str, Array]:
    """By llama.cpp's names: factors are tensors with a ``.weight`` or ``.scale``, norms as they are."""
    names, found = gguf.get_tensor_name_map(MODEL_ARCH.GEMMA4, 64), dict[str, Array]()
    for name, values in reference.state_dict().items():
        if name == "lm_head.weight":
            continue
        layer = name.split(".")[2]
        if name.endswith("router.scale"):
            found[f"blk.{layer}.ffn_gate_inp.scale"] = values.numpy()
        elif name.endswith("per_expert_scale"):
            found[f"blk.{layer}.ffn_down_exps.scale"] = values.numpy()
        else:
            whole = f"{name}.weight" if ".experts." in name or name.endswith("layer_scalar") else name
            theirs = names.get_name(whole, try_suffixes=(".weight", ".bias"))
            assert theirs is not None, name
            found[theirs] = values.numpy()
    pairs, turned = reference.config.per_layer_config[len(reference.model.layers) - 1].head_dim // 2, 0.25
    found["rope_freqs.weight"] = np.array([1.0] * int(turned * pairs) + [1e30] * (pairs - int(turned * pairs)), "<f4")
    return found


def metadata_of(reference: PreTrainedModel) -> dict[str, Any]:
    """Of the architecture, as llama.cpp's converter writes it."""
    config = reference.config
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    full = config.per_layer_config[slides.index(False)]
    wide = 2 if config.use_double_wide_mlp else 1
    own = config.num_hidden_layers - config.num_kv_shared_layers
    heads = [config.num_key_value_heads if sliding else full.num_key_value_heads for sliding in slides]
    metadata: dict[str, Any] = {
        "attention.key_length": full.head_dim,
        "attention.value_length": full.head_dim,
        "attention.key_length_swa": config.head_dim,
        "attention.value_length_swa": config.head_dim,
        "attention.head_count_kv": heads if len(set(heads)) > 1 else heads[0],
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": slides,
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "feed_forward_length": [config.intermediate_size * (1 if i < own else wide) for i in range(len(slides))],
        "final_logit_softcapping": config.final_logit_softcapping,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.dimension_count": full.head_dim,
        "rope.dimension_count_swa": config.head_dim,
    }
    if config.enable_moe_block:
        metadata |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.top_k_experts,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    return metadata


def written(path: Path, name: str, **changes: Any) -> Path:
    reference = reference_of(name)
    return write_model(
        path, reference, MODEL_ARCH.GEMMA4, metadata_of(reference) | changes, tensors=tensors_of(reference)
    )


def test_every_name_of_llama_cpp_is_known() -> None:
    assert NAMES.gguf is not None
    for tensor in gguf.MODEL_TENSORS[MODEL_ARCH.GEMMA4]:
        name = f"{gguf.TENSOR_NAMES[tensor].format(bid=0)}.weight"
        assert NAMES.gguf.of(name)[0] != name or name in NAMES.gguf.unread


@pytest.mark.parametrize("name", VARIANTS)
def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path, name: str) -> None:
    directory = checkpoint(tmp_path / "model", name, **shape(name))
    check_same(written(tmp_path / "m.gguf", name), reference_of(name), directory)


def test_a_quantised_table_is_read_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = reference_of("gemma4", hidden_size_per_layer_input=32)
    types = {"per_layer_token_embd.weight": GGMLQuantizationType.Q8_0}
    file = tmp_path / "m.gguf"
    write_model(file, reference, MODEL_ARCH.GEMMA4, metadata_of(reference), tensors=tensors_of(reference), types=types)
    served = [served_logprobs(runner_of(resolved(file).directory, weights=(str(file),)))]
    monkeypatch.setattr("app.checkpoints.loader._TABLE_ROWS", 200)
    monkeypatch.setattr("app.checkpoints.loader._COPIED_ELEMENTS", 1000)
    served.append(served_logprobs(runner_of(resolved(file).directory, weights=(str(file),))))
    assert torch.equal(*served)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.sliding_window_pattern": [True, False]}, "sliding_window_pattern is not 5 times"),
        ({"attention.value_length": 16}, "value_length differs"),
        ({"rope.dimension_count_swa": 8}, "dimension_count_swa differs"),
        ({"attention.head_count_kv": [1, 2, 3, 4, 5]}, "head_count_kv differs among layers of one kind"),
        ({"feed_forward_length": [96, 96, 96, 97, 97]}, "feed_forward_length = 96 and 97"),
        ({"attention.shared_kv_layers": 5, "feed_forward_length": 96}, "num_kv_shared_layers"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        resolved(written(tmp_path / "m.gguf", "gemma4", **changes))


def test_a_rotary_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    reference = reference_of("gemma4")
    tensors = tensors_of(reference) | {"rope_freqs.weight": np.linspace(1, 8, 16, dtype="<f4")}
    file = write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.GEMMA4, metadata_of(reference), tensors=tensors)
    with pytest.raises(StoreError, match=r"rope_freqs\.weight.* is not a rotation of a part"):
        config_json(read_gguf_header(file))


SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|tool_call>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["\n", "\n\n", "a", "b", "▁", "▁a", "ab", "▁ab", "你"]


def test_the_tokenizer_of_a_gguf_file_merges_as_the_file_says(tmp_path: Path) -> None:
    """Not by scores, by which ``▁a`` and ``b`` would be ``▁ab``'s parts."""
    tokens = [*SPECIALS, *BYTES, *PIECES]
    kinds = [TokenType.CONTROL] * 6 + [TokenType.USER_DEFINED] + [TokenType.BYTE] * 256
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [*map(int, kinds), *[int(TokenType.NORMAL)] * len(PIECES)],
        "tokenizer.ggml.merges": ["\n \n", "a b", "▁ a"],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    reference = reference_of("gemma4", vocab_size=len(tokens), vocab_size_per_layer_input=len(tokens))
    file = tmp_path / "m.gguf"
    write_model(file, reference, MODEL_ARCH.GEMMA4, metadata_of(reference) | metadata, tensors=tensors_of(reference))
    files = resolved(file)
    tokenizer = Tokenizer.from_file(str(files.tokenizer_file))
    found = tokenizer.encode("ab a\n\n你é<|tool_call>")
    assert found.tokens == ["<bos>", "ab", "▁a", "\n\n", "你", "<0xC3>", "<0xA9>", "<|tool_call>"]
    assert tokenizer.decode(found.ids, skip_special_tokens=False) == "<bos>ab a\n\n你é<|tool_call>"
    assert files.eos_token_ids == (1, 5), "a turn's end is an answer's, whether or not the file says so"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A model that sees images, and its directory."""
    text = make_reference("gemma4").config.to_dict()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "position_embedding_size": 64,
    }
    tokens = {f"{kind}_token_id": 127 for kind in ("image", "video", "audio")}
    config = Gemma4Config(text_config={**text, "pad_token_id": 0}, vision_config=vision, **tokens)
    torch.manual_seed(2)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name:
                parameter.normal_(std=0.2)
    directory = tmp_path_factory.mktemp("seeing")
    model.save_pretrained(directory)
    return model, directory


def test_the_text_part_of_a_model_that_sees_images(seeing: tuple[PreTrainedModel, Path]) -> None:
    reference, directory = seeing
    model, config = load(directory)
    assert config.architecture == "Gemma4ForConditionalGeneration"
    tokens = [token % 127 for token in TOKENS]
    with torch.no_grad():
        expected = reference(torch.tensor([tokens]), use_cache=False).logits[0]
    close(PagedExecution(model, config).sequence(tokens, [60, 40], SHUFFLED_BLOCKS), expected)


def test_keys_that_nobody_uses_are_no_error(tmp_path: Path) -> None:
    """Published checkpoints hold projections of the layers that attend over the keys of others."""
    directory = checkpoint(tmp_path, "gemma4")
    file = directory / "model.safetensors"
    names = [f"model.layers.4.self_attn.{part}.weight" for part in ("k_proj", "v_proj", "k_norm")]
    save_file({**load_file(file), **{name: torch.zeros(3) for name in names}}, file)
    assert load(directory)[0].ignores("model.language_model.layers.3.self_attn.k_norm.weight")
    assert not load(directory)[0].ignores("model.layers.2.self_attn.v_norm.weight")


@pytest.mark.parametrize("name", ["gemma4", "gemma4_experts"])
def test_an_int8_checkpoint(tmp_path: Path, name: str) -> None:
    directory = checkpoint(tmp_path / "model", name, **shape(name))
    write_tokenizer(directory / "tokenizer.json")
    out = tmp_path / "int8"
    write(read_model("model", directory, find_weights(directory)), out)
    stored = load_file(out / "model.safetensors")
    floating = {name for name, tensor in stored.items() if tensor.dtype is torch.bfloat16}
    assert ("model.embed_tokens_per_layer.weight" in floating) == (name == "gemma4")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype is torch.int8
    assert "quantization_config" in json.loads((out / "config.json").read_text())
    error = served_logprobs(runner_of(out)) - expected_logprobs(directory)
    assert error.square().mean() < 0.06 * expected_logprobs(directory).var()
