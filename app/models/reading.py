"""What families share when they read a ``config.json`` (torch-free).

Both spellings in circulation are read: ``rope_theta`` + ``rope_scaling``, and the ``rope_parameters`` that
transformers 5 writes. GGUF metadata is turned into the same JSON when a model is pulled, so nothing else is parsed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec

from app.layers.config import Activation
from app.layers.rope_scaling import YarnScaling
from app.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, Rope
from app.models.config_fields import MOE_FIELDS, ConfigError, convert, refuse_number_changing, shown
from app.models.config_rope import read_rope
from app.models.quantization import read_quantization

Positive = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
"""Configs come from strangers: beyond this nothing could be served, and products of sizes would overflow in torch."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
NumLayers = Annotated[int, msgspec.Meta(gt=0, le=1 << 12)]
Epsilon = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class DecoderFields(msgspec.Struct, kw_only=True):
    """Fields that most decoders have, with the defaults that transformers gives absent ones.

    A family whose fields are called otherwise, or that has more of them, has a struct of its own, or a subclass.
    """

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: NumLayers
    num_attention_heads: Positive
    num_key_value_heads: Positive | msgspec.UnsetType | None = msgspec.UNSET
    head_dim: Positive | None = None
    max_position_embeddings: Positive
    rms_norm_eps: Epsilon = 1e-6
    hidden_act: Any = "silu"
    tie_word_embeddings: bool | None = False
    attention_bias: bool | None = False
    mlp_bias: bool | None = False
    sliding_window: Positive | msgspec.UnsetType | None = msgspec.UNSET
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: list[str] | None = None


BESIDE_FIELDS: Final = frozenset({"architectures", "model_type", "quantization_config"})
"""Fields that :func:`read_fields` itself reads."""
ROPE_FIELDS: Final = frozenset(
    {"original_max_position_embeddings", "partial_rotary_factor", "rope_parameters", "rope_scaling", "rope_theta"}
)
"""Fields that :func:`app.models.config_rope.read_rope` reads."""
FIELDS_READ: Final = frozenset(DecoderFields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS
"""Fields of a family that reads :class:`DecoderFields`."""
QK_NORM_FIELDS: Final = frozenset({"use_qk_norm", "qk_layernorm"})
"""Fields that may say that query and key heads are normed, of a family in which they always are."""

_Fields = TypeVar("_Fields")


def read_fields(
    config: Mapping[str, Any], kind: type[_Fields], *, model_types: Collection[str], experts: bool = False
) -> _Fields:
    """The fields of a ``config.json`` that a family reads, checked.

    Args:
        kind: struct of the fields.
        model_types: what ``model_type`` may say, by which transformers chooses the model.
        experts: the family reads the fields of experts itself.

    Raises:
        ConfigError: a field is missing or malformed, the model is of another type, or its weights are quantised in a
            way that is not read.
    """
    fields = convert(config, kind)
    model_type = config.get("model_type")
    if model_type is not None and model_type not in model_types:
        raise ConfigError(
            f"model_type = {shown(model_type)} is not that of architectures = {shown(config['architectures'])}"
        )
    for field in () if experts else MOE_FIELDS:
        if config.get(field):
            raise ConfigError(
                f"{field} = {shown(config[field])}: mixture-of-experts models of this family are not supported"
            )
    read_quantization(config)
    return fields


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a ``config.json`` says of the decoder, where that stands in a ``text_config`` beside what sees images.

    Raises:
        ConfigError: ``text_config`` is not an object.
    """
    if "text_config" not in config:
        return config
    text = config["text_config"]
    if not isinstance(text, dict):
        raise ConfigError(f"text_config = {shown(text)} is not an object")
    outside = {name: config.get(name) for name in ("architectures", "quantization_config")}
    return {**text, **outside, "tie_word_embeddings": config.get("tie_word_embeddings")}


def activation_of(value: object, field: str, accepted: Mapping[str, Activation]) -> Activation:
    """The activation that a field names.

    Args:
        accepted: what the field may say -> which activation it is.

    Raises:
        ConfigError: it says something else.
    """
    if isinstance(value, str) and value in accepted:
        return accepted[value]
    raise ConfigError(f"{field} = {shown(value)} is not supported, only {' and '.join(map(repr, accepted))} are")


SILU: Final[Mapping[str, Activation]] = {"silu": "silu", "swish": "silu"}
"""One function under two names."""
GELU: Final[Mapping[str, Activation]] = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
}
"""Two functions under several names, as transformers has them."""


def kv_heads_of(fields: DecoderFields, *, silent: int | None = None) -> int:
    """Key/value heads.

    Args:
        silent: how many there are when the config does not say; None means as many as query heads, as a null does.

    Raises:
        ConfigError: they do not divide the query heads.
    """
    count = fields.num_key_value_heads
    if count is msgspec.UNSET:
        count = silent
    count = count or fields.num_attention_heads
    if fields.num_attention_heads % count:
        raise ConfigError(
            f"num_key_value_heads = {count} does not divide num_attention_heads = {fields.num_attention_heads}"
        )
    return count


def head_dim_of(fields: DecoderFields, *, silent: int | None = None) -> int:
    """Width of a head that is rotated.

    Args:
        silent: its width when the config does not say; None divides ``hidden_size`` by the heads.

    Raises:
        ConfigError: it is odd, or the heads do not divide ``hidden_size``.
    """
    head_dim = fields.head_dim or silent
    if head_dim is None:
        if fields.hidden_size % fields.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads = {fields.num_attention_heads} does not divide hidden_size = "
                f"{fields.hidden_size} and head_dim is absent"
            )
        head_dim = fields.hidden_size // fields.num_attention_heads
    if head_dim % 2:
        raise ConfigError(f"head_dim = {head_dim} is odd; rotary embedding needs an even width")
    return head_dim


def share_of_width(hidden_size: int, num_heads: int, head_dim: int | None) -> int:
    """Width of a head that is rotated, of a family whose heads share ``hidden_size`` out.

    Args:
        head_dim: what the config says it is.

    Raises:
        ConfigError: the heads do not divide ``hidden_size``, the width is odd, or the config says another.
    """
    if hidden_size % num_heads or hidden_size // num_heads % 2:
        raise ConfigError(f"num_attention_heads = {num_heads} does not share hidden_size = {hidden_size} out evenly")
    share = hidden_size // num_heads
    if head_dim not in (None, share):
        raise ConfigError(f"head_dim = {head_dim} is not supported, only the {share} that hidden_size leaves for each")
    return share


def check_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Checks the heads of a config that says all three sizes.

    Raises:
        ConfigError: the key/value heads do not divide the query heads, or a width is odd, which cannot be rotated.
    """
    if num_heads % num_kv_heads or head_dim % 2:
        raise ConfigError(
            f"num_attention_heads = {num_heads} of width head_dim = {head_dim} do not go with num_key_value_heads = "
            f"{num_kv_heads}: a multiple of these, of an even width, is needed"
        )


_OLD_LAYER_TYPES = {"attention": "full_attention"}


def windows_of_types(types: Sequence[str], window: int | None, num_layers: int) -> tuple[int | None, ...]:
    """Window of each layer by ``layer_types``.

    Raises:
        ConfigError: there are not as many as layers, one is of another type, or one slides and there is no window.
    """
    if len(types) != num_layers:
        raise ConfigError(f"layer_types has {len(types)} entries, num_hidden_layers = {num_layers}")
    types = [_OLD_LAYER_TYPES.get(kind, kind) for kind in types]
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"layer_types = {kind!r} is not supported")
        if kind == "sliding_attention" and window is None:
            raise ConfigError("layer_types names sliding_attention but sliding_window is not in use")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def every_other_window(types: Sequence[str] | None, window: int | None, num_layers: int) -> tuple[int | None, ...]:
    """Window of each layer where the first and then every other layer slides, unless ``layer_types`` says otherwise.

    Raises:
        ConfigError: as of :func:`windows_of_types`.
    """
    if types is None:
        types = ["full_attention" if i % 2 else "sliding_attention" for i in range(num_layers)]
    return windows_of_types(types, window, num_layers)


def later_windows(fields: DecoderFields) -> tuple[int | None, ...]:
    """Window of each layer where those from ``max_window_layers`` on slide with ``use_sliding_window``, or as
    ``layer_types`` says."""
    window = 4096 if fields.sliding_window is msgspec.UNSET else fields.sliding_window
    window = window if fields.use_sliding_window else None
    if fields.layer_types is not None:
        return windows_of_types(fields.layer_types, window, fields.num_hidden_layers)
    first = 28 if fields.max_window_layers is None else fields.max_window_layers
    return tuple(None if i < first else window for i in range(fields.num_hidden_layers))


def no_windows(fields: DecoderFields, architecture: str) -> tuple[None, ...]:
    """Window of each layer of a family that has none.

    Raises:
        ConfigError: one is in use nevertheless, or ``layer_types`` names a layer that slides.
    """
    window = fields.sliding_window
    unused = fields.use_sliding_window is False
    if isinstance(window, int) and not unused and window < fields.max_position_embeddings:
        raise ConfigError(
            f"sliding_window = {window} is not supported of {architecture}, whose layers see all positions"
        )
    if fields.layer_types is not None:
        windows_of_types(fields.layer_types, None, fields.num_hidden_layers)
    return (None,) * fields.num_hidden_layers


def context_of(max_position_embeddings: int, rope: Rope | None) -> int:
    """Longest sequence the model is made for: YaRN stretches the original context, whatever the config repeats."""
    if rope is not None and isinstance(rope.scaling, YarnScaling):
        stretched = int(rope.scaling.factor * rope.scaling.original_max_position_embeddings)
        return max(max_position_embeddings, stretched)
    return max_position_embeddings


def gated_decoder(
    architecture: str,
    config: Mapping[str, Any],
    fields: DecoderFields,
    *,
    windows: Sequence[int | None],
    head_dim: int,
    num_kv_heads: int,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    partial: float | None = None,
    reads: frozenset[str] = FIELDS_READ,
    rope: Rope | None = None,
) -> ModelConfig:
    """Rotary attention and a SiLU-gated MLP in every layer, alike but for their windows.

    Args:
        windows: of each layer.
        partial: as of :func:`~app.models.config_rope.read_rope`.
        reads: fields that the family reads, or that say of it what is so anyway.
        rope: rotary settings of a family that reads them otherwise than most.

    Raises:
        ConfigError: rotary settings that are malformed or not supported, another activation, or a field that nothing
            reads although it changes what the model computes.
    """
    activation = activation_of(fields.hidden_act, "hidden_act", SILU)
    refuse_number_changing(config, reads, head_dim)
    if rope is None:
        rope = read_rope(config, fields.max_position_embeddings, head_dim, partial=partial)
    attention = AttentionConfig(
        num_heads=fields.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=qk_norm,
    )
    mlp = MlpConfig(width=fields.intermediate_size, activation=activation, bias=mlp_bias)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=tuple(LayerConfig(msgspec.structs.replace(attention, window=window), mlp) for window in windows),
        context_length=context_of(fields.max_position_embeddings, rope),
        tie_word_embeddings=bool(fields.tie_word_embeddings),
    )


def with_layers(
    model: ModelConfig, attention: Sequence[Mapping[str, Any]], mlp: Mapping[str, Any] | None = None
) -> ModelConfig:
    """A decoder with other attention and feed-forward parts.

    Args:
        attention: of each layer, fields of its :class:`AttentionConfig` and their values.
        mlp: likewise of every layer's feed-forward part.
    """
    layers = tuple(
        LayerConfig(msgspec.structs.replace(layer.mixer, **changes), msgspec.structs.replace(layer.mlp, **(mlp or {})))
        for layer, changes in zip(model.layers, attention, strict=True)
    )
    return msgspec.structs.replace(model, layers=layers)
