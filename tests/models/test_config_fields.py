"""Every field that transformers' models read is read here or harmless; others pass only where they change no number."""

from __future__ import annotations

import ast
import dataclasses
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from app.models.architectures import ARCHITECTURES, parse_config
from app.models.config import ConfigError
from app.models.config_fields import NEUTRAL, is_neutral
from app.models.reading import FIELDS_READ
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.test_config import GPT2, LLAMA_3_1, MISTRAL_7B, QWEN2_5, QWEN3, SMOLLM2, windows_of
from tests.models.tiny import VARIANTS, family_of
from tests.runner.driver import runner_of


@dataclass(frozen=True)
class Family:
    """transformers' decoder of a tiny model's family."""

    config: type[PreTrainedConfig]
    read: frozenset[str]
    """Fields that are read here: ``FIELDS_READ`` of the family's ``config``, or of all where it has no more."""


def families() -> dict[str, Family]:
    """transformers' name of each family that has a tiny model -> the family."""
    found = {}
    for config, _ in VARIANTS.values():
        name = config.__module__.split(".")[-2]
        own = getattr(import_module(f"{family_of(config).module}.config"), "FIELDS_READ", FIELDS_READ)
        found[name] = Family(config, own)
    return found


FAMILIES = families()
SHARED = ("modeling_rope_utils", "masking_utils")
PACKAGE = Path(transformers.__file__).parent

HARMLESS = {
    "_attn_implementation": "how attention is computed, not what",
    "attention_dropout": "of training",
    "initializer_range": "of training",
    "pad_token_id": "the embedding row that training leaves alone",
    "use_cache": "of the caller",
    "num_logits_to_keep": "of the caller",
    "get_text_config": "a method",
    "standardize_rope_params": "a method",
    "validate_rope": "a method",
    "default_theta": "of the class",
    "output_router_logits": "of training, likewise the loss of the router",
    "router_aux_loss_coef": "of training",
    "router_jitter_noise": "of training",
    "attn_pdrop": "of training, likewise the other dropouts",
    "embd_pdrop": "of training",
    "resid_pdrop": "of training",
    "residual_dropout": "of training",
    "embedding_dropout": "of training",
    "is_decoder": "of the caller",
    **dict.fromkeys(("num_labels", "problem_type", "classifier_dropout", "hidden_dropout"), "of classifiers"),
    "summary_activation": "of a second head, likewise the rest of the summary",
    "summary_first_dropout": "of a second head",
    "summary_last_dropout": "of a second head",
    "summary_proj_to_labels": "of a second head",
    "summary_type": "of a second head",
    "summary_use_proj": "of a second head",
    "vision_config": "of what sees images, like the next two",
    "image_token_id": "",
    "mm_tokens_per_image": "",
    "qk_head_dim": "the sum of two that are read",
    "num_mtp_layers": "of layers that draft tokens",
    "num_nextn_predict_layers": "likewise",
    "kv_sharing_modes": "made of fields that are read",
}
"""Read by transformers' models or declared by their configs, without any effect on the numbers."""
DECLARED_HARMLESS = {
    "transformers_version",
    "output_hidden_states",
    "return_dict",
    "dtype",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "bos_token_id",
    "eos_token_id",
    "pretraining_tp",
}


def fields_of(source: str) -> set[str]:
    """Attributes that code reads of anything called ``config``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=owner, attr=name):
                pass
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[owner, ast.Constant(value=str(name)), *_]):
                pass
            case _:
                continue
        if ast.unparse(owner).split(".")[-1] in ("config", "effective_config", "text_config"):
            found.add(name)
    return found


def family_source(family: str) -> str:
    return (PACKAGE / "models" / family / f"modeling_{family}.py").read_text()


_SEES = "Vision|Audio|Multimodal|Clippable|PreTrained|Qwen3_5(Moe)?Model|Gemma4Model|ForConditional"


def text_source(family: str) -> str:
    """Without the classes of what sees images or hears, which have configs of their own, and how weights begin."""
    tree = ast.parse(family_source(family))
    return "\n".join(
        ast.unparse(node) for node in tree.body if not (isinstance(node, ast.ClassDef) and re.search(_SEES, node.name))
    )


def unknown(fields: set[str], read: frozenset[str] = FIELDS_READ) -> set[str]:
    """Those that are neither read here nor refused nor harmless."""
    known = read | NEUTRAL.keys() | HARMLESS.keys()
    return {field for field in fields if field not in known and is_neutral(field, 0.37, head_dim=64)}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_familys_model_reads_is_read_here_or_harmless(family: str) -> None:
    read = fields_of(text_source(family))
    assert "hidden_size" in read
    assert "rope_parameters" in read or family == "gpt2"
    assert unknown(read, FAMILIES[family].read) == set()


@pytest.mark.parametrize("module", SHARED)
def test_what_its_masks_and_angles_read_is_read_here_or_harmless(module: str) -> None:
    read = fields_of((PACKAGE / f"{module}.py").read_text())
    assert read
    assert unknown(read) == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_familys_config_declares_is_read_here_or_harmless(family: str) -> None:
    config = FAMILIES[family].config()
    declared = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map)
    assert "hidden_size" in declared
    assert unknown(declared, FAMILIES[family].read) - DECLARED_HARMLESS == set()


def test_every_family_that_is_served_has_a_tiny_model() -> None:
    tiny = {family_of(config).module for config, _ in VARIANTS.values()}
    assert {row.module for row in ARCHITECTURES if row.generates} == tiny


def test_factors_and_caps_of_all_other_decoders_are_refused() -> None:
    """Names that say what they do: no decoder of transformers has one that would pass unread."""
    says = re.compile(r"\w*(multiplier|softcap|soft_cap|logit_cap|logits?_scal|clip_qkv|scale_emb|embedding_scale)\w*")
    passing = set()
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        file = PACKAGE / "models" / family / f"modeling_{family}.py"
        if file.is_file() and says.search(source := file.read_text()):
            fields = {field for field in fields_of(source) if says.fullmatch(field)}
            passing |= {field for field in fields if is_neutral(field, 0.37, head_dim=64)}
    assert passing <= {"logit_scale_init_value"}  # of training


def test_the_introspection_finds_all_ways_to_read() -> None:
    source = "self.config.a; config.b; getattr(config, 'c', None); getattr(self.config, 'd'); x.e; hasattr(config, 'f')"
    assert fields_of(source) == {"a", "b", "c", "d", "f"}


@pytest.mark.parametrize(
    ("field", "refused", "neutral"),
    [
        ("is_causal", False, True),
        ("attn_logit_softcapping", 50.0, None),
        ("final_logit_softcapping", 30.0, None),
        ("embedding_multiplier", 12.0, 1.0),
        ("residual_multiplier", 0.22, 1),
        ("mlp_multipliers", [0.5, 2.0], None),
        ("logits_scaling", 8.0, 1.0),
        ("logit_scale", 0.0625, 1.0),
        ("query_pre_attn_scalar", 256, 64),
        ("clip_qkv", 8.0, None),
        ("no_rope_layers", [1, 1, 1, 0] * 7, [1] * 30),
        ("per_layer_config", {"3": {"num_attention_heads": 1}}, {}),
        ("use_qk_norm", True, False),
        ("scale_emb", 12, 1),
        ("scale_depth", 1.4, None),
        ("use_bidirectional_attention", True, False),
        ("position_embedding_type", "alibi", "rope"),
        ("layer_types", ["full_attention"] * 29 + ["sliding_attention"], ["full_attention"] * 30),
        ("sliding_window", 4096, 8192),
        ("hidden_act", "gelu", "swish"),
        ("model_type", "granite", "llama"),
        (
            "rope_scaling",
            {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0},
            {"rope_type": "dynamic", "factor": 2.0},
        ),
        (
            "rope_scaling",
            {"rope_type": "yarn", "factor": 2.0, "attn_factor": 0.5},
            {"rope_type": "yarn", "factor": 2.0, "attn_factor": 1.0, "finetuned": True},
        ),
        (
            "rope_scaling",
            {"type": "default", "mrope_section": [16, 24, 24]},
            {"type": "default", "mrope_section": None},
        ),
    ],
)
def test_a_field_passes_only_where_it_changes_nothing(field: str, refused: Any, neutral: Any) -> None:
    parse_config({**SMOLLM2, field: neutral})
    with pytest.raises(ConfigError) as error:
        parse_config({**SMOLLM2, field: refused})
    assert field in str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**SMOLLM2, "per_layer_config": {str(i): {"hidden_size": i} for i in range(10_000)}})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("config", [SMOLLM2, LLAMA_3_1, MISTRAL_7B, QWEN2_5, QWEN3, GPT2])
def test_what_published_configs_carry_beside_is_no_error(config: dict[str, Any]) -> None:
    beside = {
        "_name_or_path": "x/y",
        "auto_map": {"AutoModelForCausalLM": "modeling.X"},
        "attention_bias": config.get("attention_bias", False),
        "attention_dropout": 0.1,
        "bos_token_id": 1,
        "initializer_range": 0.02,
        "mlp_bias": False,
        "num_experts": 0,
        "pretraining_tp": 2,
        "rope_interleaved": False,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"dtype": "q4"},
        "transformers_version": "4.40.0",
        "unsloth_version": "2025.1",
        "use_cache": True,
    }
    assert parse_config({**config, **beside}) == parse_config(config)


def test_fields_that_a_family_does_not_read_change_nothing() -> None:
    assert parse_config({**QWEN2_5, "attention_bias": False}) == parse_config(QWEN2_5)
    assert parse_config({**QWEN3, "use_qk_norm": True}) == parse_config(QWEN3)
    windowless = {**SMOLLM2, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 3}
    assert parse_config(windowless) == parse_config(SMOLLM2)


CONFIG_OF = {
    **dict.fromkeys(("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"), "Qwen3_5TextConfig"),
    **dict.fromkeys(("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"), "Qwen3_5MoeTextConfig"),
}
ELSEWHERE = ("gemma3", "gemma4", "deepseek", "minicpm3", "granitemoehybrid", "falcon_h1")
"""Families whose own tests say what their absent fields are."""
CONFIG_OF["Mistral3ForConditionalGeneration"] = "MistralConfig"
CONFIG_OF["Lfm2VlForConditionalGeneration"] = "Lfm2Config"


@pytest.mark.parametrize(
    "architecture",
    [name for row in ARCHITECTURES for name in row.hf if row.module.removeprefix("app.models.") not in ELSEWHERE],
)
def test_absent_fields_are_what_transformers_takes_them_for(architecture: str) -> None:
    default = re.sub("(ForCausalLM|LMHeadModel)$", "Config", architecture)
    theirs_of = getattr(transformers, CONFIG_OF.get(architecture, default))
    given = {
        "architectures": [architecture],
        "hidden_size": 4096,
        "intermediate_size": 64,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 30,
        "vocab_size": 128,
    }
    theirs, ours = theirs_of(**given), parse_config(given)
    attention = ours.attentions[0]
    assert attention.num_kv_heads == getattr(theirs, "num_key_value_heads", 32)
    assert attention.head_dim == (getattr(theirs, "head_dim", None) or 128)
    epsilons = ("norm_eps", "rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
    assert ours.norm_eps == next(getattr(theirs, name) for name in epsilons if hasattr(theirs, name))
    rope = getattr(theirs, "rope_parameters", None)
    if rope and isinstance(next(iter(rope.values())), dict):  # by type of layer
        rope = rope[theirs.layer_types[0]]
    assert (attention.rope and attention.rope.theta) == (rope and rope["rope_theta"])
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    sliding = getattr(theirs, "sliding_window", None)
    types = getattr(theirs, "layer_types", None) or ["sliding_attention" if sliding else "full_attention"] * 30
    mixers = ["delta" if kind == "linear_attention" else "attention" for kind in types]
    assert [layer.mixer.kind for layer in ours.layers] == mixers
    types = [kind for kind in types if kind != "linear_attention"]
    assert windows_of(ours) == tuple(sliding if kind == "sliding_attention" else None for kind in types)


BY_LAYER = ["full_attention", "sliding_attention", "attention"]


@pytest.mark.parametrize(
    ("variant", "config"),
    [
        ("mistral", {"layer_types": BY_LAYER}),
        ("mistral", {"layer_types": ["sliding_attention"] * 3}),
        ("mistral_full", {"layer_types": None, "sliding_window": 24}),
        ("qwen2_sliding", {"layer_types": BY_LAYER}),
        ("qwen3", {"layer_types": BY_LAYER, "use_sliding_window": True, "sliding_window": 24}),
        ("qwen3", {"layer_types": None, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}),
        ("llama", {"pretraining_tp": 4, "attention_dropout": 0.5, "hidden_act": "swish"}),
        ("qwen2", {"attention_bias": False}),
        *(("gpt2", {"activation_function": name}) for name in ("gelu", "gelu_fast", "gelu_accurate", "relu2")),
        *(("gpt2", {"activation_function": f"gelu_{name}"}) for name in ("pytorch_tanh", "python", "python_tanh")),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"reorder_and_upcast_attn": True, "n_ctx": 64, "num_key_value_heads": 2, "attn_pdrop": 0.5}),
        ("gpt2_scales", {"activation_function": "gelu_new", "layer_norm_epsilon": 0.5}),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 500}),
        ("gpt_neox", {"hidden_act": "gelu_fast", "layer_norm_eps": 0.5}),
        ("gpt_neox", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("starcoder2", {"hidden_act": "gelu", "sliding_window": 24, "norm_epsilon": 0.5}),
        ("phi3_short", {"sliding_window": None, "rope_parameters": None}),
        ("phi3", {"original_max_position_embeddings": 256}),
        ("cohere2", {"layer_types": None, "sliding_window_pattern": 3, "logit_scale": 2.0}),
        ("cohere", {"sliding_window": 24, "layer_norm_eps": 0.5}),
    ],
)
def test_edited_configs_mean_the_same_to_both(tmp_path: Path, variant: str, config: dict[str, Any]) -> None:
    directory = checkpoint(tmp_path, variant, config=config)
    served = served_logprobs(runner_of(directory))
    torch.testing.assert_close(served, expected_logprobs(directory), rtol=0, atol=1e-4)
