"""What a ``config.json`` says of how a checkpoint's weights are quantised (torch-free).

Read are int8 weights with a scale for each output, which need no more than their files say, and weights in FP8 (E4M3)
of three makers: ``fp8`` (DeepSeek, Qwen, Mistral, transformers), ``fbgemm_fp8`` and compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from app.models.config_fields import ConfigError, shown

_SERVED: Final = (
    "weights are read in FP8 ('fp8', 'fbgemm_fp8', 'compressed-tensors' float-quantized), in int8 with a scale for "
    "each output ('compressed-tensors' int-quantized), and gpt-oss' in 'mxfp4'"
)
_Side = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
_Block = tuple[_Side, _Side]


class Fp8Scales(msgspec.Struct, frozen=True, kw_only=True):
    """The scales that a checkpoint's matrices [N, K] in FP8 may have."""

    per_tensor: bool = False
    """One of a whole matrix."""
    per_output: bool = False
    """One of each of its N rows."""
    blocks: _Block | None = None
    """Rows and columns of a block, each of which has one; those at the edges may be smaller. None: there are none."""

    @property
    def label(self) -> str:
        """Names the scales in the files of packed weights."""
        return f"FP8 {int(self.per_tensor)} {int(self.per_output)} {self.blocks}"


class _Method(msgspec.Struct):
    quant_method: str


class _Fp8(msgspec.Struct):
    """``weight_block_size`` is 128 x 128 to transformers where it is absent, none at all to those who wrote such files
    first; what a tensor's scale is tells its shape."""

    weight_block_size: _Block | msgspec.UnsetType | None = msgspec.UNSET
    fmt: Literal["e4m3"] | None = None
    expert_dtype: Literal["fp8"] | None = None


class _Weights(msgspec.Struct):
    num_bits: Literal[8]
    type: Literal["int", "float"]
    strategy: Literal["tensor", "channel", "block"]
    symmetric: Literal[True] = True
    dynamic: Literal[False] | None = False
    block_structure: _Block | None = None


class _Group(msgspec.Struct):
    weights: _Weights | None = None


class _Sparsity(msgspec.Struct):
    format: Literal["dense"] | None = None


class _CompressedTensors(msgspec.Struct):
    config_groups: dict[str, _Group]
    format: Literal["int-quantized", "float-quantized", "naive-quantized"]
    sparsity_config: _Sparsity | None = None
    transform_config: dict[str, Any] | None = None


def read_quantization(config: Mapping[str, Any]) -> Fp8Scales | None:
    """The scales of a checkpoint in FP8; None of any other that can be read.

    Raises:
        ConfigError: ``quantization_config`` says something that cannot be read; names the method and those that can.
    """
    value = config.get("quantization_config")
    if not value:
        return None
    try:
        method = msgspec.convert(value, _Method).quant_method
        match method:
            case "fp8":
                return _of_fp8(msgspec.convert(value, _Fp8))
            case "fbgemm_fp8":
                return Fp8Scales(per_output=True)
            case "compressed-tensors":
                return _of_compressed_tensors(msgspec.convert(value, _CompressedTensors))
    except msgspec.ValidationError as error:
        said = value.get("quant_method") if isinstance(value, dict) else value
        raise ConfigError(
            f"quantization_config = {shown(said)} is not supported as it is ({error}): {_SERVED}"
        ) from None
    raise ConfigError(f"quantization_config = {shown(method)} is not supported: {_SERVED}")


def fp8_scales(config: Mapping[str, Any]) -> Fp8Scales | None:
    """As :func:`read_quantization`, of a config that its family has read, which alone may know MXFP4."""
    value = config.get("quantization_config")
    if isinstance(value, dict) and value.get("quant_method") == "mxfp4":
        return None
    return read_quantization(config)


def _of_fp8(said: _Fp8) -> Fp8Scales:
    if said.weight_block_size is msgspec.UNSET:
        return Fp8Scales(per_tensor=True, per_output=True, blocks=(128, 128))
    if said.weight_block_size is None:
        return Fp8Scales(per_tensor=True, per_output=True)
    return Fp8Scales(blocks=said.weight_block_size)


def _of_compressed_tensors(said: _CompressedTensors) -> Fp8Scales | None:
    if said.transform_config:
        raise msgspec.ValidationError("transform_config changes what a model computes")
    weights = [group.weights for group in said.config_groups.values() if group.weights is not None]
    kinds, strategies = {each.type for each in weights}, {each.strategy for each in weights}
    if kinds == {"int"} and strategies == {"channel"} and said.format != "float-quantized":
        return None
    if kinds != {"float"} or said.format == "int-quantized":
        raise msgspec.ValidationError(
            f"weights of types {sorted(kinds)} by {sorted(strategies)} in format {said.format!r}"
        )
    blocks = {each.block_structure for each in weights if each.strategy == "block"}
    if len(blocks) > 1 or None in blocks:
        raise msgspec.ValidationError("block_structure has to be there, and one of all groups")
    return Fp8Scales(
        per_tensor="tensor" in strategies, per_output="channel" in strategies, blocks=next(iter(blocks), None)
    )
