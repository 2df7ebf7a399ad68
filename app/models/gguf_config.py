"""GGUF metadata as the ``config.json`` of a checkpoint (torch-free)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.models.config_fields import ConfigError
from app.models.gguf_names import LONG_ROPE_FACTORS, ROPE_FACTORS, Header, TensorInfo

_LLAMA3_CONTEXT, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0
"""Original context and ramp of every Llama 3.1 and later; a GGUF file has only the table that follows from them."""
_LARGEST = float(np.finfo(np.float32).max)
_MOST_FREQUENCIES = 1 << 12
_MULTIPLIER = "yarn_log_multiplier"
_YARN_NEUTRAL = {"attn_factor": 1.0, "yarn_ext_factor": 1.0, _MULTIPLIER: 0.0}
"""Settings of YaRN that are accepted only where they change nothing."""

_PLAIN_EXPERTS = {
    "expert_gating_func": 1,
    "expert_shared_count": 0,
    "expert_group_count": 1,
    "expert_group_used_count": 1,
}
"""Settings of experts -> where they change nothing: a softmax, no shared expert, no groups."""


class GGUFReader:
    """The architecture's own metadata of a file, typed; keys without the architecture's name. Errors are
    :class:`ConfigError` and name the file."""

    def __init__(self, header: Header) -> None:
        self.header = header

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer, or the one that an array repeats for every layer."""
        value = self._uniform(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, or the one that an array repeats for every layer."""
        value = self._uniform(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST:
            raise self._wrong(key, value)
        # Stored as fp32: the shortest decimal that gives it back is what the model's makers wrote.
        return float(str(np.float32(value)))

    def flag(self, key: str, *, default: bool) -> bool:
        """Whether something is so."""
        value = self._uniform(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value)
        return value

    def text(self, key: str) -> str | None:
        """A text, or the one that an array repeats for every layer; None where there is none."""
        value = self._uniform(key, None, required=False)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value)
        return value

    def values(self, key: str) -> Any:
        """The value as the file has it, e.g. an array with an element for each layer; None where there is none."""
        return self.header.metadata.get(f"{self.header.architecture}.{key}")

    def error(self, problem: str) -> ConfigError:
        """An error that names the file."""
        return ConfigError(f"{self.header.path}: {problem}")

    def _uniform(self, key: str, default: Any, *, required: bool = True) -> Any:
        name = f"{self.header.architecture}.{key}"
        value = self.header.metadata.get(name, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.error(f"{name} differs from layer to layer: not supported")
            value = value[0]
        if value is None and required:
            raise self.error(f"the metadata has no {name}")
        return value

    def _wrong(self, key: str, value: object) -> ConfigError:
        return self.error(f"{self.header.architecture}.{key} = {value!r} is of the wrong type")


def gated_decoder_json(
    reader: GGUFReader,
    architecture: str,
    *,
    partial: bool = False,
    experts: bool = False,
    all_dim: bool = False,
    layer_norm: bool = False,
    kv_heads: int | None = None,
) -> dict[str, Any]:
    """``config.json`` of a decoder with rotary attention and a SiLU-gated MLP in every layer, none of which slides.

    Args:
        partial: a part of each head is rotated, of which ``rope.dimension_count`` says how much.
        experts: the family reads the metadata of experts itself.
        all_dim: as of :func:`rope_scaling_json`.
        layer_norm: norms are LayerNorms, their epsilon is ``layer_norm_eps``.
        kv_heads: of layers that have attention, where not all do.

    Raises:
        ConfigError: a field is missing, malformed or not supported.
    """
    header, name = reader.header, reader.header.architecture
    if not experts and reader.integer("expert_count", 0):
        raise reader.error("mixture-of-experts models of this architecture are not supported")
    heads, hidden = reader.integer("attention.head_count"), reader.integer("embedding_length")
    if heads <= 0 or hidden <= 0:
        raise reader.error(f"{heads} attention heads for a width of {hidden}")
    head_dim = reader.integer("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if reader.integer(key, head_dim) != head_dim and not (partial and key == "rope.dimension_count"):
            raise reader.error(f"{name}.{key} differs from the head width {head_dim}: not supported")
    if layer_norm:
        epsilon = {"layer_norm_eps": reader.number("attention.layer_norm_epsilon")}
    else:
        epsilon = {"rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon")}
    # Files of models without a dense layer may leave its width out.
    inner = reader.integer("feed_forward_length", reader.integer("expert_feed_forward_length", 0) if experts else None)
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": reader.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or reader.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": reader.integer("context_length"),
        **epsilon,
        "rope_theta": reader.number("rope.freq_base", 10_000.0),
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "sliding_window": None,
        "rope_scaling": rope_scaling_json(reader, head_dim, all_dim=all_dim),
    }


def experts_json(reader: GGUFReader, *, normalised: bool | None, reads: frozenset[str] = frozenset()) -> dict[str, Any]:
    """``config.json`` of a mixture of experts in every layer.

    Args:
        normalised: whether llama.cpp divides weights by their sum, of an architecture that does as the file says only
            where it says so; None: it asks no file.
        reads: settings that the family reads itself.

    Raises:
        ConfigError: a field is missing, malformed or not supported.
    """
    name = reader.header.architecture
    for key, neutral in _PLAIN_EXPERTS.items():
        if key not in reads and reader.integer(key, neutral) not in (0, neutral):
            raise reader.error(f"{name}.{key} = {reader.values(key)!r} is not supported")
    if reader.number("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise reader.error(f"{name}.expert_weights_scale is not supported")
    config: dict[str, Any] = {
        "num_experts": reader.integer("expert_count"),
        "num_experts_per_tok": reader.integer("expert_used_count"),
    }
    if normalised is not None:
        said = reader.values("expert_weights_norm")
        config["norm_topk_prob"] = said if isinstance(said, bool) else normalised
    return config


def window_of(reader: GGUFReader) -> int | None:
    """Positions that a query sees in layers with a window; None where that is all of the context."""
    window = reader.integer("attention.sliding_window", 0)
    return window if 0 < window < reader.integer("context_length") else None


def refuse_window(reader: GGUFReader) -> None:
    """Refuses a window, of an architecture whose files do not say which layers slide.

    Raises:
        ConfigError: there is one.
    """
    if window_of(reader):
        key = f"{reader.header.architecture}.attention.sliding_window"
        raise reader.error(f"{key} does not say which layers slide: not supported")


def rope_scaling_json(
    reader: GGUFReader, head_dim: int, *, all_dim: bool = False, tenth: bool = False
) -> dict[str, Any] | None:
    """``rope_scaling`` of a ``config.json``.

    Args:
        all_dim: ``yarn_log_multiplier`` is YaRN's ``mscale_all_dim``.
        tenth: it is a tenth of both ``mscale`` and that, which no such file leaves out.

    Raises:
        ConfigError: a field is missing, malformed or not supported.
    """
    factors = reader.header.tensors.get(ROPE_FACTORS)
    if factors is not None:
        return _llama3_scaling(reader, factors, head_dim)
    if any(name in reader.header.tensors for name in LONG_ROPE_FACTORS):
        return _long_scaling(reader)
    kind = reader.text("rope.scaling.type")
    # Files from before rope.scaling.* say it with rope.scale_linear.
    factor = reader.number("rope.scaling.factor", reader.number("rope.scale_linear", 0.0))
    if kind == "none" or factor in (0.0, 1.0):
        return None
    match kind:
        case "linear" | None:
            return {"rope_type": "linear", "factor": factor}
        case "yarn":
            return _yarn_scaling(reader, factor, all_dim=all_dim, tenth=tenth)
        case _:
            raise reader.error(f"rope.scaling.type = {kind!r} is not supported; supported are none, linear, yarn")


def _yarn_scaling(reader: GGUFReader, factor: float, *, all_dim: bool, tenth: bool) -> dict[str, Any]:
    mscales: dict[str, Any] = {}
    if all_dim and (of_all := reader.number(f"rope.scaling.{_MULTIPLIER}", 0.0)):
        mscales = {"mscale": 1.0, "mscale_all_dim": of_all}
    if tenth:
        value = float(str(np.float32(10 * reader.number(f"rope.scaling.{_MULTIPLIER}"))))
        mscales = {"mscale": value, "mscale_all_dim": value}
    for key, neutral in _YARN_NEUTRAL.items():
        if key == _MULTIPLIER and (all_dim or tenth):
            continue
        if reader.number(f"rope.scaling.{key}", neutral) != neutral:
            raise reader.error(f"{reader.header.architecture}.rope.scaling.{key} is not supported")
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    amplitude = reader.number("rope.scaling.yarn_attn_factor", 1.0)
    if amplitude != 1.0 and not math.isclose(amplitude, usual, rel_tol=1e-5):  # some files say what is so anyway
        raise reader.error(f"{reader.header.architecture}.rope.scaling.yarn_attn_factor is not supported")
    return {
        "rope_type": "yarn",
        "factor": factor,
        **mscales,
        "original_max_position_embeddings": reader.integer("rope.scaling.original_context_length"),
        "beta_fast": reader.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": reader.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _long_scaling(reader: GGUFReader) -> dict[str, Any]:
    """LongRoPE, both of whose sets of factors are tensors."""
    kind = reader.text("rope.scaling.type")
    if kind not in (None, "none", "longrope"):
        raise reader.error(f"rope.scaling.type = {kind!r} beside LongRoPE's factors is not supported")
    short, long = (_factors(reader, name) for name in LONG_ROPE_FACTORS)
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "attention_factor": reader.number("rope.scaling.attn_factor", 0.0) or None,
        "original_max_position_embeddings": reader.integer(
            "rope.scaling.original_context_length", reader.integer("context_length")
        ),
    }


def _factors(reader: GGUFReader, name: str) -> list[float]:
    tensor = reader.header.tensors.get(name)
    if tensor is None:
        raise reader.error(f"tensor {name!r} is missing")
    if tensor.dtype != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > _MOST_FREQUENCIES:
        raise reader.error(f"tensor {name!r} is {tensor.dtype} {tensor.shape}, not a rotary table")
    values = np.fromfile(reader.header.file_of(tensor), dtype="<f4", count=tensor.shape[0], offset=tensor.offset)
    return [float(str(value)) for value in values]  # as GGUFReader.number


def _llama3_scaling(reader: GGUFReader, factors: TensorInfo, head_dim: int) -> dict[str, Any]:
    """Llama 3's parameters, recovered from the table of what each frequency is divided by."""
    if factors.dtype != "F32" or factors.shape != (head_dim // 2,):
        raise reader.error(f"tensor {ROPE_FACTORS!r} is {factors.dtype} {factors.shape}, not a rotary table")
    table = np.fromfile(reader.header.file_of(factors), dtype="<f4", count=head_dim // 2, offset=factors.offset)
    factor = float(table.max())
    theta = reader.number("rope.freq_base", 10_000.0)
    with np.errstate(all="ignore"):  # what a damaged table or base gives does not compare equal
        same = np.allclose(table, _llama3_table(theta, head_dim, factor), rtol=1e-4, atol=0.0)
    if not same or factor <= 1.0:
        raise reader.error(f"tensor {ROPE_FACTORS!r} is not Llama 3's rotary scaling: not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def _llama3_table(theta: float, head_dim: int, factor: float) -> NDArray[np.float64]:
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((_LLAMA3_CONTEXT / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0, 1.0)
    table: NDArray[np.float64] = 1.0 / ((1.0 - smooth) / factor + smooth)
    return table
