"""An input of its own that every layer has of each token (Gemma 3n and 4: *per-layer embeddings*).

At a step's beginning :class:`LayerInputs` makes those of all layers side by side: each token's row of a wide table, and
a product of its embedding that is normed layer by layer, added and halved in power. Each layer's :class:`LayerInput`
adds to the stream what a gate of the stream lets through of its own. The table is the largest tensor of such models and
is only looked up in: a step reads the rows of its tokens.

T tokens of a step, D model width, L layers, P width of a layer's input. The ranks of a tensor-parallel model share out
the table's rows; products here are small, and whole on every rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.kernels.add_norm import add_norm
from app.kernels.collective import ONE_RANK
from app.kernels.gelu_mul import gelu_mul
from app.kernels.head_norm_add import head_norm_add
from app.kernels.types import Act, ActFormat, StepArena
from app.layers.config import LayerInputsConfig
from app.layers.embedding import Embedding
from app.layers.linear import Linear, Split
from app.layers.norm import RMSNorm
from app.quant.destination import Destination
from app.quant.placement import Placement


class LayerInputs:
    """Makes the inputs of all layers.

    Args:
        width: D.
        num_layers: L.
        norm: of each layer's part of the product, [P].
    """

    def __init__(
        self, config: LayerInputsConfig, width: int, num_layers: int, *, norm: RMSNorm, placement: Placement
    ) -> None:
        self._width, self._inner, self._num_layers = width, config.width, num_layers
        self._dtype = placement.dtype
        size = num_layers * config.width
        self.embedding = Embedding(config.vocab_size, size, placement=placement, scale=math.sqrt(config.width))
        self._projection = Linear(
            {"per_layer_model_projection": size},
            width,
            split=Split.OUTPUTS,
            bias=False,
            placement=replace(placement, ranks=ONE_RANK),
        )
        self._norm = norm

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor, embedded_TD: Tensor, arena: StepArena) -> list[Tensor]:
        """[T, P] of each layer, columns of a buffer of ``arena``.

        Args:
            embedded_TD: the tokens' embeddings.
        """
        x, projected_TN, inputs_TN = self._take(arena)
        add_norm(embedded_TD, None, 0.0, x)
        self._projection(x, Act(projected_TN))
        self.embedding(token_ids_T, positions_T, inputs_TN)
        # The factor 1 / sqrt(D) that the product would have ahead of its norm stands in the norm's epsilon.
        eps = self._norm.eps * self._width
        head_norm_add(projected_TN, self._norm.weight, inputs_TN, inputs_TN, eps=eps, scale=math.sqrt(0.5))
        return [inputs_TN[:, i * self._inner : (i + 1) * self._inner] for i in range(self._num_layers)]

    def reserve(self, arena: StepArena) -> None:
        """Takes what a call takes from ``arena``."""
        self._take(arena)

    def _take(self, arena: StepArena) -> tuple[Act, Tensor, Tensor]:
        x = arena.take_act(self._width, self._dtype, self._projection.act_format)
        size = self._num_layers * self._inner
        return x, arena.take(size, self._dtype), arena.take(size, self._dtype)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``embed_tokens_per_layer``, ``per_layer_model_projection`` and ``per_layer_projection_norm`` below
        ``prefix``."""
        named: dict[str, Destination] = {f"{prefix}.embed_tokens_per_layer.weight": self.embedding.destination()}
        named |= self._projection.destinations(prefix)
        return named | self._norm.destinations(f"{prefix}.per_layer_projection_norm")


@dataclass(frozen=True, slots=True)
class LayerInputBuffers:
    """A step's buffers of :class:`LayerInput`."""

    x: Act
    """[T, D]"""
    gate: Tensor
    """[T, P]"""
    gated: Act
    """[T, P]"""


@dataclass(frozen=True, slots=True)
class LayerInputLayout:
    """Layout of :class:`LayerInput`."""

    width: int
    x_format: ActFormat
    inner: int
    gated_format: ActFormat
    dtype: torch.dtype

    def take(self, arena: StepArena) -> LayerInputBuffers:
        """The buffers of a step."""
        return LayerInputBuffers(
            x=arena.take_act(self.width, self.dtype, self.x_format),
            gate=arena.take(self.inner, self.dtype),
            gated=arena.take_act(self.inner, self.dtype, self.gated_format),
        )


class LayerInput:
    """Lets a gate of the stream through to a layer's own input of each token, and takes that to the stream's width.

    Args:
        width: D.
        post_norm: normalises what is added to the stream.
    """

    def __init__(self, config: LayerInputsConfig, width: int, *, post_norm: RMSNorm, placement: Placement) -> None:
        whole = replace(placement, ranks=ONE_RANK)
        self._gate = Linear(
            {"per_layer_input_gate": config.width}, width, split=Split.OUTPUTS, bias=False, placement=whole
        )
        self._projection = Linear(
            {"per_layer_projection": width}, config.width, split=Split.OUTPUTS, bias=False, placement=whole
        )
        self.post_norm = post_norm
        self.layout = LayerInputLayout(
            width=width,
            x_format=self._gate.act_format,
            inner=config.width,
            gated_format=self._projection.act_format,
            dtype=placement.dtype,
        )

    def __call__(self, buffers: LayerInputBuffers, input_TP: Tensor, out: Act) -> None:
        """``out`` [T, D] of the stream, which ``buffers.x`` is, and of the layer's input."""
        self._gate(buffers.x, Act(buffers.gate))
        gelu_mul(buffers.gate, input_TP, buffers.gated)
        self._projection(buffers.gated, out)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``per_layer_input_gate``, ``per_layer_projection`` and ``post_per_layer_input_norm`` below ``prefix``."""
        named = self._gate.destinations(prefix) | self._projection.destinations(prefix)
        return named | self.post_norm.destinations(f"{prefix}.post_per_layer_input_norm")
