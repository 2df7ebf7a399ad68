"""GGUF metadata as the ``config.json`` of a checkpoint (torch-free)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.models.config_fields import ConfigError
from app.models.gguf_names import ROPE_FACTORS, Header, TensorInfo

_LLAMA3_CONTEXT, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0
"""Original context and ramp of every Llama 3.1 and later; a GGUF file has only the table that follows from them."""
_LARGEST = float(np.finfo(np.float32).max)
_YARN_NEUTRAL = {"attn_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_log_multiplier": 0.0}
"""Settings of YaRN that are accepted only where they change nothing."""


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
        """A finite number, likewise."""
        value = self._uniform(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST:
            raise self._wrong(key, value)
        # Stored as fp32: the shortest decimal that gives it back is what the model's makers wrote.
        return float(str(np.float32(value)))

    def text(self, key: str) -> str | None:
        """A text; None where there is none."""
        value = self._uniform(key, None, required=False)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value)
        return value

    def values(self, key: str) -> Any:
        """Whatever the file has, an array a layer say; None where there is nothing."""
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
    reader: GGUFReader, architecture: str, *, partial: bool = False, experts: bool = False
) -> dict[str, Any]:
    """``config.json`` of a decoder with rotary attention and a SiLU-gated MLP in every layer, none of which slides.

    Args:
        partial: a part of each head is rotated, of which ``rope.dimension_count`` says how much.
        experts: the family reads the metadata of experts itself.

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
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": reader.integer("feed_forward_length"),
        "num_hidden_layers": reader.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": reader.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": reader.integer("context_length"),
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": reader.number("rope.freq_base", 10_000.0),
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "sliding_window": None,
        "rope_scaling": rope_scaling_json(reader, head_dim),
    }


def window_of(reader: GGUFReader) -> int | None:
    """Positions that a query of a layer that slides sees; None where that is all of the context."""
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


def rope_scaling_json(reader: GGUFReader, head_dim: int) -> dict[str, Any] | None:
    """``rope_scaling`` of a ``config.json``.

    Raises:
        ConfigError: a field is missing, malformed or not supported.
    """
    factors = reader.header.tensors.get(ROPE_FACTORS)
    if factors is not None:
        return _llama3_scaling(reader, factors, head_dim)
    kind = reader.text("rope.scaling.type")
    # Files from before rope.scaling.* say it with rope.scale_linear.
    factor = reader.number("rope.scaling.factor", reader.number("rope.scale_linear", 0.0))
    if kind == "none" or factor in (0.0, 1.0):
        return None
    match kind:
        case "linear" | None:
            return {"rope_type": "linear", "factor": factor}
        case "yarn":
            return _yarn_scaling(reader, factor)
        case _:
            raise reader.error(f"rope.scaling.type = {kind!r} is not supported; supported are none, linear, yarn")


def _yarn_scaling(reader: GGUFReader, factor: float) -> dict[str, Any]:
    for key, neutral in _YARN_NEUTRAL.items():
        if reader.number(f"rope.scaling.{key}", neutral) != neutral:
            raise reader.error(f"{reader.header.architecture}.rope.scaling.{key} is not supported")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": reader.integer("rope.scaling.original_context_length"),
        "beta_fast": reader.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": reader.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _llama3_scaling(reader: GGUFReader, factors: TensorInfo, head_dim: int) -> dict[str, Any]:
    """Llama 3's parameters, recovered from the table of what each frequency is divided by."""
    if factors.dtype != "F32" or factors.shape != (head_dim // 2,):
        raise reader.error(f"tensor {ROPE_FACTORS!r} is {factors.dtype} {factors.shape}, not a rotary table")
    table = np.fromfile(reader.header.path, dtype="<f4", count=head_dim // 2, offset=factors.offset)
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
