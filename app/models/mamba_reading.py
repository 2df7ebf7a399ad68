"""What families with Mamba-2 mixers share: how a ``config.json`` and GGUF files say what they are (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from app.models.config import ConfigError, MambaConfig
from app.models.gguf_config import GGUFReader
from app.models.gguf_names import Floats, GGUFTensor, Header, TensorInfo
from app.models.reading import DecoderFields, Positive


class _Infinity(msgspec.Struct, rename={"name": "__float__"}):
    """Infinity as transformers writes it, which JSON has no number for."""

    name: Literal["Infinity"]


_NONE: Final = _Infinity("Infinity")
_Step = Annotated[float, msgspec.Meta(ge=0)] | _Infinity


class MambaFields(DecoderFields, kw_only=True):
    """Fields of a decoder and of its Mamba-2 mixers, with transformers' defaults."""

    mamba_n_heads: Positive = 128
    mamba_n_groups: Positive = 1
    mamba_d_state: Positive = 256
    mamba_d_head: Positive | Literal["auto"] = "auto"
    mamba_d_conv: Annotated[int, msgspec.Meta(ge=2, le=64)] = 4
    mamba_expand: Annotated[int, msgspec.Meta(gt=0, lt=1 << 10)] = 2
    mamba_chunk_size: Any = None
    """Tokens that transformers computes together; it changes no result."""
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: tuple[_Step, _Step] | None = None


def read_mamba(fields: MambaFields, inner: int, **changes: Any) -> MambaConfig:
    """The Mamba-2 mixer that a config says.

    Args:
        inner: columns of all heads.
        changes: what the family says beside it.

    Raises:
        ConfigError: sizes do not go together, or steps have no range.
    """
    heads, groups = fields.mamba_n_heads, fields.mamba_n_groups
    head_dim = inner // heads if fields.mamba_d_head == "auto" else fields.mamba_d_head
    if head_dim * heads != inner:
        raise ConfigError(f"mamba_n_heads = {heads} of mamba_d_head = {fields.mamba_d_head} are not {inner} columns")
    if heads % groups:
        raise ConfigError(f"mamba_n_groups = {groups} does not divide mamba_n_heads = {heads}")
    least, most = (math.inf if isinstance(step, _Infinity) else step for step in fields.time_step_limit or (0.0, _NONE))
    if not least <= most:
        raise ConfigError(f"time_step_limit = {[least, most]} is no range")
    config = MambaConfig(
        num_heads=heads,
        head_dim=head_dim,
        num_groups=groups,
        state_dim=fields.mamba_d_state,
        conv_width=fields.mamba_d_conv,
        conv_bias=fields.mamba_conv_bias,
        in_bias=fields.mamba_proj_bias,
        out_bias=fields.mamba_proj_bias,
        step_limit=(least, most),
    )
    return msgspec.structs.replace(config, **changes)


def mamba_json(reader: GGUFReader, layer: int) -> dict[str, Any]:
    """What a GGUF file says of its Mamba-2 mixers, as fields of a ``config.json``.

    Args:
        layer: one that has such a mixer.

    Raises:
        ConfigError: a field is missing, malformed or not supported.
    """
    heads, inner = reader.integer("ssm.time_step_rank"), reader.integer("ssm.inner_size")
    if heads <= 0 or inner <= 0 or inner % heads:
        raise reader.error(f"{heads} heads in ssm.inner_size = {inner}")
    tensors = reader.header.tensors
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": reader.integer("ssm.group_count"),
        "mamba_d_state": reader.integer("ssm.state_size"),
        "mamba_d_conv": reader.integer("ssm.conv_kernel"),
        "mamba_conv_bias": f"blk.{layer}.ssm_conv1d.bias" in tensors,
        "mamba_proj_bias": f"blk.{layer}.ssm_in.bias" in tensors,
    }


def _log_rate(_header: Header, _entry: TensorInfo, values: Floats) -> Floats:
    """Makes ``A_log`` of ``-exp(A_log)``: checkpoints hold the former."""
    with np.errstate(all="ignore"):  # of a damaged file
        return np.log(-values)


MAMBA_PARTS: Final[Mapping[str, str | GGUFTensor]] = {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d.weight": GGUFTensor("mamba.conv1d.weight", middle=True),
    "ssm_conv1d.bias": "mamba.conv1d.bias",
    "ssm_dt.bias": "mamba.dt_bias",
    "ssm_a": GGUFTensor("mamba.A_log", _log_rate, flat=True),
    "ssm_d": GGUFTensor("mamba.D", flat=True),
    "ssm_norm": GGUFTensor("mamba.norm", flat=True),
    "ssm_out": "mamba.out_proj",
}
"""Names in layers with a Mamba-2 mixer."""
