"""GGUF names of tensors, and how tensors of GGUF files differ from those of checkpoints (torch-free)."""

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
LONG_ROPE_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
"""Tables of LongRoPE's factors, which are no weights either."""


class TensorInfo(Protocol):
    """Name, type, shape and place of a tensor in its file."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def offset(self) -> int: ...


class Header(Protocol):
    """Metadata and tensor list of a GGUF file, or of all files of a model that is split."""

    @property
    def path(self) -> Path: ...
    @property
    def architecture(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def file_of(self, entry: Any, /) -> Path: ...


Undo = Callable[[Header, TensorInfo, Floats], Floats]
"""Makes a checkpoint's tensor of a file's: given the header, the whole tensor's entry, and its values or an extent of
them."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor whose file holds it in another form than checkpoints do."""

    name: str
    """Name in checkpoints, as in :class:`GGUFNames`."""
    undo: Undo | None = None
    """Turns the file's values into the checkpoint's; None: they are equal."""
    transposed: bool = False
    """Whether the file has [N, K] where checkpoints have [K, N]; vectors are alike."""
    whole: bool = False
    """Whether ``undo`` needs all values: an extent of the checkpoint's tensor is not one of the file's."""
    middle: bool = False
    """The file has [N, K] where checkpoints have [N, 1, K]."""
    row: bool = False
    """The file has [K] where checkpoints have [1, K]."""
    flat: bool = False
    """The file has [N, K] where checkpoints have [N * K]."""
    moves_rows: bool = False
    """``undo`` moves rows and no more, whatever they consist of."""


@dataclass(frozen=True, slots=True)
class GGUFPair:
    """Two tensors of a layer in a file that are one of checkpoints."""

    name: str
    """Whole name of that one, below its layer."""
    first: str
    """Whole name in the file, below its layer, likewise ``second``."""
    second: str
    shape: Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, ...] | None]
    """Makes the shape of the one of the two's; None where they do not go together."""
    join: Callable[[Floats, Floats], Floats]
    """Makes the values of the one of the two's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFNames:
    """Parts of GGUF names -> modules of checkpoints; what is not here stays as it is, to be reported as left over.

    A part stands for its ``.weight`` and ``.bias``, each of the module's; one with its ending, or without any in the
    file, for that tensor alone, whose whole name is given. A name with ``{expert}`` in it stands for one of each
    expert, of which the file keeps a stack.
    """

    model: Mapping[str, str | GGUFTensor]
    layer: Mapping[str, str | GGUFTensor]
    """Parts of names that begin with ``blk.{index}``, without that, and their names below a layer's prefix."""
    layers: str = "model.layers"
    """Prefix of a layer's modules."""
    unread: frozenset[str] = field(default=frozenset({ROPE_FACTORS, *LONG_ROPE_FACTORS}))
    """Whole names of tensors that are no weights."""

    pairs: tuple[GGUFPair, ...] = ()
    """Pairs of tensors in each layer; files may hold the one tensor instead, which :attr:`layer` names."""

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


_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+(?:\.\w+)??)(?P<kind>\.weight|\.bias)?")

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
"""Names in the layers of most decoders."""
POST_NORM_PARTS: Mapping[str, str] = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Names of the norms of layers that norm behind their sublayers alone."""
SANDWICH_PARTS: Mapping[str, str] = {**POST_NORM_PARTS, "ffn_norm": "pre_feedforward_layernorm"}
"""Names of the norms of layers that norm on both sides of their sublayers."""
EXPERT_PARTS: Mapping[str, str] = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
    "ffn_gate_up_exps": "mlp.experts.{expert}.gate_up_proj",
}
"""Names that layers with experts have beside those of :data:`LAYER_PARTS`."""
SHARED_EXPERT_PARTS: Mapping[str, str | GGUFTensor] = {
    "ffn_gate_inp_shexp": GGUFTensor("mlp.shared_expert_gate", row=True),
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
"""Names that an expert which every token goes through has beside those."""


def unpermuted(heads_key: str) -> Undo:
    """Puts rows into the rotate-half order, whose rotated pairs are neighbours in files of architecture ``llama``.

    Args:
        heads_key: key of the metadata with the number of heads that the rows are.
    """

    def undo(header: Header, entry: TensorInfo, values: Floats) -> Floats:
        metadata, architecture, rows = header.metadata, header.architecture, entry.shape[0]
        heads = metadata.get(f"{architecture}.{heads_key}", metadata.get(f"{architecture}.attention.head_count"))
        if isinstance(heads, list):  # a value a layer, 0 without attention; the config made sure they are equal
            heads = next((count for count in heads if count), 0)
        if not isinstance(heads, int) or heads <= 0 or rows % (2 * heads):
            raise ConfigError(f"{header.path}: tensor {entry.name!r} has {rows} rows, which are not {heads!r} heads")
        head_dim = rows // heads
        pairs = values.reshape(values.shape[0] // head_dim, head_dim // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(values.shape)

    return undo


def norms_less_one(parts: Mapping[str, str]) -> dict[str, str | GGUFTensor]:
    """``parts`` for files whose norms hold 1 + w, of a family whose checkpoints hold w."""
    return {part: GGUFTensor(name, less_one) if part.endswith("norm") else name for part, name in parts.items()}


def less_one(_header: Header, _entry: TensorInfo, values: Floats) -> Floats:
    """Makes w of a norm's 1 + w: checkpoints hold w."""
    return values - np.float32(1)


PERMUTED_LAYER_PARTS: Mapping[str, str | GGUFTensor] = {
    **LAYER_PARTS,
    "attn_q": GGUFTensor("self_attn.q_proj", unpermuted("attention.head_count"), moves_rows=True),
    "attn_k": GGUFTensor("self_attn.k_proj", unpermuted("attention.head_count_kv"), moves_rows=True),
}
"""Names in the layers of decoders whose files have the rows of queries and keys as those of architecture ``llama``."""
