"""What a checkpoint's ``config.json`` says of a model, checked and in one shape (torch-free).

Both spellings in circulation are read: ``rope_theta`` + ``rope_scaling``, and the ``rope_parameters`` that
transformers 5 writes. GGUF metadata is turned into the same JSON when a model is pulled, so this is the only parser.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from app.layers.rope_scaling import RopeScaling, YarnScaling
from app.models.config_fields import MOE_FIELDS, ConfigError, convert, refuse_number_changing, shown
from app.models.config_rope import rotary

__all__ = ["FIELDS_READ", "SUPPORTED_ARCHITECTURES", "ConfigError", "ModelConfig", "unsupported_architecture"]

Positive = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
"""Configs come from strangers: beyond this nothing could be served, and products of sizes would overflow in torch."""


class _Windows(enum.Enum):
    """Which layers of a family slide over ``sliding_window`` positions."""

    NONE = enum.auto()
    ALL = enum.auto()
    """Unless ``layer_types`` says otherwise; 4096 positions when the config is silent."""
    LATER = enum.auto()
    """With ``use_sliding_window``: those from ``max_window_layers`` on, or as ``layer_types`` says."""


class _Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What an architecture's name alone says of its shape."""

    model_types: tuple[str, ...]
    """What ``model_type`` may say: transformers chooses the model by it."""
    qkv_bias: bool = False
    """Always biased; otherwise ``reads_attention_bias`` decides."""
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    qk_norm: bool = False
    default_head_dim: int | None = None
    """Width of a head when the config is silent; None divides ``hidden_size`` by the heads."""
    default_kv_heads: int | None = None
    """Key/value heads when the config is silent; None means as many as query heads, as a null does."""
    windows: _Windows = _Windows.NONE
    implied: frozenset[str] = frozenset()
    """Fields that, of this family, say what is so anyway."""


_MISTRAL = _Traits(model_types=("mistral", "ministral"), default_kv_heads=8, windows=_Windows.ALL)
_ARCHITECTURES = {
    "LlamaForCausalLM": _Traits(model_types=("llama",), reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": _MISTRAL,
    # transformers makes this of a Mistral with layer_types.
    "MinistralForCausalLM": _MISTRAL,
    "Qwen2ForCausalLM": _Traits(model_types=("qwen2",), qkv_bias=True, default_kv_heads=32, windows=_Windows.LATER),
    "Qwen3ForCausalLM": _Traits(
        model_types=("qwen3",),
        reads_attention_bias=True,
        qk_norm=True,
        default_head_dim=128,
        default_kv_heads=32,
        windows=_Windows.LATER,
        implied=frozenset({"use_qk_norm", "qk_layernorm"}),
    ),
}
SUPPORTED_ARCHITECTURES = tuple(_ARCHITECTURES)


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder's shape."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_proj_bias: bool
    mlp_bias: bool
    qk_norm: bool
    layer_windows: tuple[int | None, ...]
    """For each layer how many positions a query sees, itself included; None for all."""

    @property
    def context_length(self) -> int:
        """Longest sequence the model is made for: YaRN stretches the original context, whatever the config repeats."""
        if isinstance(self.rope_scaling, YarnScaling):
            stretched = int(self.rope_scaling.factor * self.rope_scaling.original_max_position_embeddings)
            return max(self.max_position_embeddings, stretched)
        return self.max_position_embeddings

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Reads a Hugging Face style ``config.json``.

        Raises:
            ConfigError: unknown architecture, missing or malformed field, or a setting that is not supported.
        """
        architecture, traits = _architecture(config)
        hf = convert(config, _HfConfig)
        head_dim = _head_dim(hf, traits)
        _refuse_unsupported(config, traits, head_dim)
        num_kv_heads = _kv_heads(hf, traits)
        if hf.num_attention_heads % num_kv_heads:
            raise ConfigError(
                f"num_key_value_heads = {num_kv_heads} does not divide num_attention_heads = {hf.num_attention_heads}"
            )
        theta, scaling = rotary(config, hf.max_position_embeddings)
        attention_bias = traits.reads_attention_bias and bool(hf.attention_bias)
        return cls(
            architecture=architecture,
            vocab_size=hf.vocab_size,
            hidden_size=hf.hidden_size,
            intermediate_size=hf.intermediate_size,
            num_layers=hf.num_hidden_layers,
            num_heads=hf.num_attention_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=hf.rms_norm_eps,
            rope_theta=theta,
            rope_scaling=scaling,
            max_position_embeddings=hf.max_position_embeddings,
            tie_word_embeddings=bool(hf.tie_word_embeddings),
            qkv_bias=traits.qkv_bias or attention_bias,
            o_proj_bias=attention_bias,
            mlp_bias=traits.reads_mlp_bias and bool(hf.mlp_bias),
            qk_norm=traits.qk_norm,
            layer_windows=_layer_windows(hf, traits, architecture),
        )


_SILU = ("silu", "swish")
"""One function under two names."""
_OLD_LAYER_TYPES = {"attention": "full_attention"}


class _HfConfig(msgspec.Struct, kw_only=True):
    """The fields that are read, with the defaults that transformers gives absent ones."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Annotated[int, msgspec.Meta(gt=0, le=1 << 12)]
    num_attention_heads: Positive
    num_key_value_heads: Positive | msgspec.UnsetType | None = msgspec.UNSET
    head_dim: Positive | None = None
    max_position_embeddings: Positive
    rms_norm_eps: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 1e-6
    hidden_act: Any = "silu"
    tie_word_embeddings: bool | None = False
    attention_bias: bool | None = False
    mlp_bias: bool | None = False
    sliding_window: Positive | msgspec.UnsetType | None = msgspec.UNSET
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: list[str] | None = None


FIELDS_READ = frozenset(_HfConfig.__struct_fields__) | {
    "architectures",
    "model_type",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
}
"""Of ``config.json``."""


def _architecture(config: Mapping[str, Any]) -> tuple[str, _Traits]:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures = {names!r} names no model class")
    for name in names:
        if name in _ARCHITECTURES:
            return name, _ARCHITECTURES[name]
    raise unsupported_architecture(names[0])


def unsupported_architecture(name: str) -> ConfigError:
    """The error for an architecture nobody serves; lists those that are."""
    return ConfigError(f"architectures = {name!r} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")


def _refuse_unsupported(config: Mapping[str, Any], traits: _Traits, head_dim: int) -> None:
    model_type = config.get("model_type")
    if model_type is not None and model_type not in traits.model_types:
        raise ConfigError(
            f"model_type = {shown(model_type)} is not that of architectures = {shown(config['architectures'])}"
        )
    if config.get("hidden_act", "silu") not in _SILU:
        raise ConfigError(f"hidden_act = {shown(config['hidden_act'])} is not supported, only 'silu' is")
    for field in MOE_FIELDS:
        if config.get(field):
            raise ConfigError(f"{field} = {config[field]!r}: mixture-of-experts models are not supported")
    if config.get("quantization_config"):
        _check_quantization(config["quantization_config"])
    refuse_number_changing(config, FIELDS_READ | traits.implied, head_dim)


class _WeightScheme(msgspec.Struct):
    num_bits: Literal[8]
    type: Literal["int"]
    symmetric: Literal[True]
    strategy: Literal["channel"]


class _QuantizedGroup(msgspec.Struct):
    weights: _WeightScheme


class _QuantizationConfig(msgspec.Struct):
    """int8 weights with one scale an output, as ``tuili quantize`` and compressed-tensors write them."""

    quant_method: Literal["compressed-tensors"]
    format: Literal["int-quantized"]
    config_groups: dict[str, _QuantizedGroup]


def _check_quantization(value: Any) -> None:
    try:
        msgspec.convert(value, _QuantizationConfig)
    except msgspec.ValidationError as error:
        method = value.get("quant_method") if isinstance(value, dict) else value
        raise ConfigError(
            f"quantization_config = {method!r}: only int8 weights with a scale for each output are supported ({error})"
        ) from None


def _kv_heads(hf: _HfConfig, traits: _Traits) -> int:
    if hf.num_key_value_heads is msgspec.UNSET:
        return traits.default_kv_heads or hf.num_attention_heads
    return hf.num_key_value_heads or hf.num_attention_heads


def _head_dim(hf: _HfConfig, traits: _Traits) -> int:
    head_dim = hf.head_dim or traits.default_head_dim
    if head_dim is None:
        if hf.hidden_size % hf.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads = {hf.num_attention_heads} does not divide hidden_size = {hf.hidden_size} "
                "and head_dim is absent"
            )
        head_dim = hf.hidden_size // hf.num_attention_heads
    if head_dim % 2:
        raise ConfigError(f"head_dim = {head_dim} is odd; rotary embedding needs an even width")
    return head_dim


def _layer_windows(hf: _HfConfig, traits: _Traits, architecture: str) -> tuple[int | None, ...]:
    """transformers' rules; ``layer_types`` goes before all others."""
    window = 4096 if hf.sliding_window is msgspec.UNSET else hf.sliding_window
    first_sliding = 0
    match traits.windows:
        case _Windows.NONE:
            _refuse_window(hf, architecture)
            window = None
        case _Windows.LATER:
            window = window if hf.use_sliding_window else None
            first_sliding = 28 if hf.max_window_layers is None else hf.max_window_layers
    if hf.layer_types is not None:
        return _windows_of_types(hf.layer_types, window, hf.num_hidden_layers)
    return tuple(None if i < first_sliding else window for i in range(hf.num_hidden_layers))


def _refuse_window(hf: _HfConfig, architecture: str) -> None:
    """Refuses a window that is in use, of a family that has none."""
    window = hf.sliding_window
    if window in (None, msgspec.UNSET) or hf.use_sliding_window is False or window >= hf.max_position_embeddings:
        return
    raise ConfigError(f"sliding_window = {window} is not supported of {architecture}, whose layers see all positions")


def _windows_of_types(types: list[str], window: int | None, num_layers: int) -> tuple[int | None, ...]:
    if len(types) != num_layers:
        raise ConfigError(f"layer_types has {len(types)} entries, num_hidden_layers = {num_layers}")
    types = [_OLD_LAYER_TYPES.get(kind, kind) for kind in types]
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"layer_types = {kind!r} is not supported")
        if kind == "sliding_attention" and window is None:
            raise ConfigError("layer_types names sliding_attention but sliding_window is not in use")
    return tuple(window if kind == "sliding_attention" else None for kind in types)
