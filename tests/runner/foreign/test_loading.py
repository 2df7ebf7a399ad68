"""What is refused of models that transformers is to compute, and how much they are taken to keep."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.runner.errors import RunnerError
from app.runner.foreign.library import read_config
from app.runner.foreign.plan import measure
from app.runner.foreign.runner import make_foreign_runner, settle
from tests.runner.driver import discard, engine_config
from tests.runner.foreign.tiny import CONTEXT, KINDS, SHARED, make, save


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("opt"), tmp_path_factory.mktemp("opt"))


@pytest.fixture
def copy(opt: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(opt, tmp_path / "copy"))


def start(directory: Path, **settings: Any) -> Any:
    return make_foreign_runner(engine_config(directory, **{"via": "transformers", **settings}), discard)


def edit(directory: Path, **fields: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_weights(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"via": "vllm"}, "via = 'vllm' is not supported; use 'transformers'"),
        ({"weights": ("/a/model.gguf",)}, "no GGUF files are read"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size = 2: .* one rank"),
        ({"quantization": "int8"}, "quantization = 'int8': .* only floating weights"),
        ({"kernels": "strict"}, "kernels = 'strict'"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype = 'int8': .* kept in dtype = 'float32'"),
        ({"max_model_len": CONTEXT + 1}, f"max_model_len = {CONTEXT + 1} is outside the model's context of {CONTEXT}"),
        ({"max_model_len": 64, "num_blocks": 2}, "64 tokens .*; raise kv_cache_memory or lower max_model_len"),
        ({"kv_cache_memory": 1 << 60, "num_blocks": None}, "KV cache of .* does not fit"),
    ],
)
def test_settings_that_are_not_for_such_models_are_refused(opt: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RunnerError, match=message):
        start(opt, **settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "xyzzy"}, "transformers .* does not know model_type = 'xyzzy'$"),
        ({"architectures": ["OPTModel"]}, r"no causal language model for architectures = \['OPTModel'\]$"),
        ({"architectures": ["BertForMaskedLM"]}, "no causal language model"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: .* only floating weights"),
        ({"attn_implementation": "org/kernel"}, "attn_implementation = 'org/kernel' names code outside"),
        ({"text_config": {"_attn_implementation": {"": "org/kernel"}}}, "_attn_implementation = .* names code outside"),
        ({"num_attention_heads": 5}, "transformers makes no model of it: "),
        ({"hidden_size": "wide"}, "config.json: transformers .* does not read it: "),
    ],
)
def test_configs_that_no_model_is_made_of_are_refused(copy: Path, fields: dict[str, Any], message: str) -> None:
    edit(copy, **fields)
    with pytest.raises(RunnerError, match=message):
        start(copy)


def test_code_of_the_directory_is_never_run(copy: Path) -> None:
    ran = copy / "ran"
    (copy / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    remote = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit(copy, auto_map=remote)
    start(copy)  # transformers has this model itself
    edit(copy, architectures=["OwnForCausalLM"])
    with pytest.raises(RunnerError, match="the code that its auto_map names is never run"):
        start(copy)
    edit(copy, model_type="own")
    with pytest.raises(RunnerError, match="model_type = 'own'; the code that its auto_map names is never run"):
        start(copy)
    assert not ran.exists()


def test_an_adapter_is_not_left_out_silently(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(RunnerError, match=r"adapter_config\.json: no adapters are served"):
        start(copy)


def test_an_encoder_with_a_head_of_a_decoder_is_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**SHARED | {"pad_token_id": 0} | shape)
    save(transformers.BertLMHeadModel(config), tmp_path)
    with pytest.raises(RunnerError, match="BertLMHeadModel reads text in both directions"):
        start(tmp_path)


def test_missing_weights_are_named(copy: Path) -> None:
    edit_weights(copy, lambda tensors: tensors.pop("model.decoder.final_layer_norm.weight"))
    with pytest.raises(RunnerError, match=r"no weights for model.decoder.final_layer_norm.weight of OPTForCausalLM"):
        start(copy)


def test_weights_of_another_shape_are_named(copy: Path) -> None:
    edit_weights(copy, lambda tensors: tensors.update({"model.decoder.final_layer_norm.bias": torch.zeros(3)}))
    with pytest.raises(RunnerError, match=r"another shape for model.decoder.final_layer_norm.bias of OPTForCausalLM"):
        start(copy)


def test_weights_of_which_nothing_is_made_are_told(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_weights(copy, lambda tensors: tensors.update({"junk": torch.zeros(3)}))
    start(copy)
    assert "OPTForCausalLM does not use junk" in caplog.text


def test_broken_weights_are_one_line(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(RunnerError, match="transformers does not load it: ") as error:
        start(copy)
    assert "\n" not in str(error.value)


def test_without_transformers_it_says_how_to_get_it(opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RunnerError, match=r"pip install 'tuili\[via\]'"):
        start(opt)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sizes_from_shapes_alone_are_those_of_the_loaded_model(kind: str, tmp_path: Path) -> None:
    directory = save(make(kind), tmp_path)
    config, _ = settle(engine_config(directory, via="transformers", dtype="bfloat16"))
    sizes, info = measure(read_config(directory), config), start(directory, dtype="bfloat16").info
    (group,) = info.kv_cache.groups
    assert sizes.weights == info.weight_bytes
    assert sizes.per_token * 16 == group.bytes_per_block
    assert sizes.per_sequence * 8 == info.kv_cache_bytes - group.num_blocks * group.bytes_per_block


def test_keys_and_values_and_states_are_counted(tmp_path: Path) -> None:
    sizes = {}
    for kind in ("opt", "mamba"):
        directory = save(make(kind), tmp_path / kind)
        config, _ = settle(engine_config(directory, via="transformers"))
        sizes[kind] = measure(read_config(directory), config)
    assert (sizes["opt"].per_token, sizes["opt"].per_sequence) == (2 * 2 * 32 * 4, 0)
    states = 2 * (64 * 4 + 64 * 8) * 4  # of two layers: the convolution's last inputs, and the state
    assert (sizes["mamba"].per_token, sizes["mamba"].per_sequence) == (1, states - 8)


def test_states_leave_less_room_for_tokens(opt: Path, tmp_path: Path) -> None:
    mamba = save(make("mamba"), tmp_path)
    with pytest.raises(RunnerError, match=r"states of max_num_seqs = 8 sequences take .* lower max_num_seqs"):
        start(mamba, num_blocks=None, kv_cache_memory=8 * 6000)
    info = start(opt, num_blocks=None, kv_cache_memory=100 * 16 * 512).info
    assert (info.kv_cache.groups[0].num_blocks, info.max_model_len) == (100, CONTEXT)
    info = start(opt, num_blocks=None, kv_cache_memory=3 * 16 * 512).info
    assert info.max_model_len == 48
