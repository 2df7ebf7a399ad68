"""What a checkpoint's ``config.json`` says of a model, checked and in one shape (torch-free).

Both spellings in circulation are read: ``rope_theta`` + ``rope_scaling``, and the ``rope_parameters`` that
transformers 5 writes. GGUF metadata is turned into the same JSON when a model is pulled, so this is the only parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from app.layers.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

Positive = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
"""Configs come from strangers: beyond this nothing could be served, and products of sizes would overflow in torch."""

_DEFAULT_ROPE_THETA = 10_000.0
_MAX_ROPE_THETA = 1e30
_T = TypeVar("_T")
_MOE_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts")


class ConfigError(ValueError):
    """A ``config.json`` that cannot be served; one line naming the field and its value."""


class _Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What an architecture's name alone says of its shape."""

    qkv_bias: bool = False
    """Always biased; otherwise ``reads_attention_bias`` decides."""
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    qk_norm: bool = False
    default_head_dim: int | None = None
    """Width of a head when the config is silent; None divides ``hidden_size`` by the heads."""
    all_layers_slide: bool = False
    """``sliding_window`` holds for every layer, 4096 when the config is silent."""
    reads_layer_windows: bool = False
    """``use_sliding_window`` with ``layer_types`` or ``max_window_layers`` says which layers slide."""


_ARCHITECTURES = {
    "LlamaForCausalLM": _Traits(reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": _Traits(all_layers_slide=True),
    "Qwen2ForCausalLM": _Traits(qkv_bias=True, reads_layer_windows=True),
    "Qwen3ForCausalLM": _Traits(
        reads_attention_bias=True, qk_norm=True, default_head_dim=128, reads_layer_windows=True
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
        _refuse_unsupported(config)
        hf = _convert(config, _HfConfig, "")
        num_kv_heads = hf.num_key_value_heads or hf.num_attention_heads
        if hf.num_attention_heads % num_kv_heads:
            raise ConfigError(
                f"num_key_value_heads = {num_kv_heads} does not divide num_attention_heads = {hf.num_attention_heads}"
            )
        theta, scaling = _rope(config, hf.max_position_embeddings)
        attention_bias = traits.reads_attention_bias and bool(hf.attention_bias)
        return cls(
            architecture=architecture,
            vocab_size=hf.vocab_size,
            hidden_size=hf.hidden_size,
            intermediate_size=hf.intermediate_size,
            num_layers=hf.num_hidden_layers,
            num_heads=hf.num_attention_heads,
            num_kv_heads=num_kv_heads,
            head_dim=_head_dim(hf, traits),
            rms_norm_eps=hf.rms_norm_eps,
            rope_theta=theta,
            rope_scaling=scaling,
            max_position_embeddings=hf.max_position_embeddings,
            tie_word_embeddings=bool(hf.tie_word_embeddings),
            qkv_bias=traits.qkv_bias or attention_bias,
            o_proj_bias=attention_bias,
            mlp_bias=traits.reads_mlp_bias and bool(hf.mlp_bias),
            qk_norm=traits.qk_norm,
            layer_windows=_layer_windows(hf, traits),
        )


class _HfConfig(msgspec.Struct, kw_only=True):
    """The fields that are read, with the defaults that transformers gives absent ones."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Annotated[int, msgspec.Meta(gt=0, le=1 << 12)]
    num_attention_heads: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    max_position_embeddings: Positive
    rms_norm_eps: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool | None = False
    attention_bias: bool | None = False
    mlp_bias: bool | None = False
    sliding_window: Positive | msgspec.UnsetType | None = msgspec.UNSET
    use_sliding_window: bool | None = False
    max_window_layers: int | None = None
    layer_types: list[str] | None = None


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


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act = {config['hidden_act']!r} is not supported, only 'silu' is")
    for field in _MOE_FIELDS:
        if config.get(field):
            raise ConfigError(f"{field} = {config[field]!r}: mixture-of-experts models are not supported")
    if config.get("quantization_config"):
        _check_quantization(config["quantization_config"])


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


def _convert(value: Mapping[str, Any], kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        prefix = f"{where}: " if where else ""
        raise ConfigError(f"{prefix}{error}") from None


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


def _layer_windows(hf: _HfConfig, traits: _Traits) -> tuple[int | None, ...]:
    """transformers' rules: Mistral slides everywhere, Qwen from ``max_window_layers`` on or as ``layer_types`` says."""
    window = 4096 if hf.sliding_window is msgspec.UNSET else hf.sliding_window
    if traits.all_layers_slide:
        return (window,) * hf.num_hidden_layers
    if not traits.reads_layer_windows:
        return (None,) * hf.num_hidden_layers
    if not hf.use_sliding_window:
        window = None
    types = hf.layer_types
    if types is None:
        first = 28 if hf.max_window_layers is None else hf.max_window_layers
        types = ["full_attention" if i < first else "sliding_attention" for i in range(hf.num_hidden_layers)]
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    return _windows_of_types(types, window, hf.num_hidden_layers)


def _windows_of_types(types: list[str], window: int | None, num_layers: int) -> tuple[int | None, ...]:
    if len(types) != num_layers:
        raise ConfigError(f"layer_types has {len(types)} entries, num_hidden_layers = {num_layers}")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"layer_types = {kind!r} is not supported")
        if kind == "sliding_attention" and window is None:
            raise ConfigError("layer_types names sliding_attention but sliding_window is not in use")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _rope(config: Mapping[str, Any], max_position_embeddings: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling out of ``rope_scaling`` or ``rope_parameters``; what they leave out stands beside them."""
    # An older field of the two wins, as in transformers.
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(field) or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{field} = {rope!r} is not an object")
    if any(isinstance(value, dict) for value in rope.values()):
        raise ConfigError(f"{field} = {sorted(rope)!r}: rotary settings by layer type are not supported")
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise ConfigError(f"partial_rotary_factor = {partial!r} is not supported")
    theta = rope.get("rope_theta") or config.get("rope_theta") or _DEFAULT_ROPE_THETA
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not 0 < theta <= _MAX_ROPE_THETA:
        raise ConfigError(f"rope_theta = {theta!r} is not a positive number, at most {_MAX_ROPE_THETA:g}")
    return float(theta), _rope_scaling(rope, field, config, max_position_embeddings)


def _rope_scaling(
    rope: Mapping[str, Any], field: str, config: Mapping[str, Any], max_position_embeddings: int
) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    given = {key: value for key, value in rope.items() if value is not None}
    original = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    given["original_max_position_embeddings"] = original or max_position_embeddings
    match kind:
        case "default" | "dynamic":
            # Dynamic NTK only changes the base beyond max_position_embeddings, and no sequence goes there.
            return None
        case "linear":
            return _convert(given, LinearScaling, field)
        case "llama3":
            return _convert(given, Llama3Scaling, field)
        case "yarn":
            if "factor" not in given and isinstance(original, int) and original > 0:
                given["factor"] = max_position_embeddings / original
            return _convert(given, YarnScaling, field)
        case _:
            raise ConfigError(
                f"{field}.rope_type = {kind!r} is not supported; supported are default, linear, dynamic, llama3, yarn"
            )
