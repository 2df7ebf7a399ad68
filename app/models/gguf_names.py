"""GGUF names of tensors, and what is another in a GGUF file than in a checkpoint (torch-free)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.models.config_fields import ConfigError

Floats = NDArray[np.float32]

ROPE_FACTORS = "rope_freqs.weight"
"""Not a weight: Llama 3's rotary scaling as a table; the config derived from the file says the same."""


class TensorInfo(Protocol):
    """Where a tensor lies in its file."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def offset(self) -> int: ...


class Header(Protocol):
    """What a GGUF file says of itself."""

    @property
    def path(self) -> Path: ...
    @property
    def architecture(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...


Undo = Callable[[Header, TensorInfo, Floats], Floats]
"""Makes a checkpoint's tensor of a file's: given the header, the whole tensor's entry, and its values or an extent."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor whose file holds it in another form than checkpoints do."""

    name: str
    """As in :class:`GGUFNames`."""
    undo: Undo | None = None
    """Takes its values back to the checkpoint's."""
    transposed: bool = False
    """The file has [N, K] where checkpoints have [K, N]; vectors are alike."""
    whole: bool = False
    """``undo`` takes all of its values alone: an extent of the checkpoint's tensor is none of the file's."""
    middle: bool = False
    """The file has [N, K] where checkpoints have [N, 1, K]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFNames:
    """Parts of GGUF names -> modules of checkpoints; what is not here stays as it is, to be reported as left over.

    A part stands for its ``.weight`` and ``.bias``, each of the module's; one with its ending, or without any in the
    file, for that tensor alone, whose whole name is given. A name with ``{expert}`` in it stands for one of each
    expert, of which the file keeps a stack.
    """

    model: Mapping[str, str | GGUFTensor]
    layer: Mapping[str, str | GGUFTensor]
    """Of ``blk.{index}``."""
    layers: str = "model.layers"
    """Prefix of a layer's modules."""
    unread: frozenset[str] = field(default=frozenset({ROPE_FACTORS}))
    """Whole names of tensors that are no weights."""

    def of(self, name: str) -> tuple[str, GGUFTensor | None]:
        """The checkpoint's name of a tensor, and how it is taken back to the checkpoint's form, if it has to be."""
        match = _NAME.fullmatch(name)
        if match is None:
            return name, None
        layer, part, kind = match["layer"], match["part"], match["kind"] or ""
        names = self.model if layer is None else self.layer
        found, ending = names.get(part + kind), ""
        if found is None:
            found, ending = names.get(part), kind
        if found is None:
            return name, None
        stem, tensor = (found, None) if isinstance(found, str) else (found.name, found)
        return f"{stem}{ending}" if layer is None else f"{self.layers}.{layer}.{stem}{ending}", tensor


_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)(?P<kind>\.weight|\.bias)?")

MODEL_PARTS: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_PARTS: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Of most decoders."""
EXPERT_PARTS: Mapping[str, str] = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
"""Of layers with experts, beside those."""


def unpermuted(heads_key: str) -> Undo:
    """For rows whose rotated pairs are neighbours, as files of architecture ``llama`` have them: rotate-half order.

    Args:
        heads_key: of the metadata, the number of heads that the rows are.
    """

    def undo(header: Header, entry: TensorInfo, values: Floats) -> Floats:
        metadata, architecture, rows = header.metadata, header.architecture, entry.shape[0]
        heads = metadata.get(f"{architecture}.{heads_key}", metadata.get(f"{architecture}.attention.head_count"))
        if isinstance(heads, list) and len(set(heads)) == 1:  # a value a layer; the config made sure they are equal
            heads = heads[0]
        if not isinstance(heads, int) or heads <= 0 or rows % (2 * heads):
            raise ConfigError(f"{header.path}: tensor {entry.name!r} has {rows} rows, which are not {heads!r} heads")
        head_dim = rows // heads
        pairs = values.reshape(values.shape[0] // head_dim, head_dim // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(values.shape)

    return undo


def less_one(_header: Header, _entry: TensorInfo, values: Floats) -> Floats:
    """For a norm's 1 + w of which checkpoints hold w."""
    return values - np.float32(1)
