"""What the runner asks of a model.

T tokens of a step, L rows of logits, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from app.kernels.types import AttentionMetadata, PackedSequences, StepArena
from app.layers.blocks import LayerCache
from app.layers.embedding import LMHead
from app.quant.destination import Destination


class Model(Protocol):
    """A model whose weights are filled from a checkpoint."""

    def destinations(self) -> Mapping[str, Destination]:
        """Every weight of the checkpoint by name, and where it goes; always in the same order."""

    def ignores(self, name: str, /) -> bool:
        """Whether a checkpoint may hold ``name`` although :meth:`destinations` does not."""

    def twins(self) -> Mapping[str, Sequence[str]]:
        """Names of :meth:`destinations` -> tensors that a checkpoint may hold instead, the likeliest first."""


class Decoder(Model, Protocol):
    """A model that reads a step's tokens, each behind what its sequence left in pages, and gives logits."""

    @property
    def lm_head(self) -> LMHead:
        """The output head."""

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        caches: Sequence[LayerCache],
        metas: Sequence[AttentionMetadata],
        arena: StepArena,
    ) -> Tensor:
        """Final hidden states [T, D] of the step's tokens, a buffer of ``arena``; writes what the layers keep.

        Args:
            token_ids_T: [T] int64.
            positions_T: [T] int64.
            caches: the pages of each mixer, of which a layer may have two.
            metas: rows and blocks of the step's tokens, for each mixer.
            arena: begun with T rows.
        """

    def logits(self, hidden_TD: Tensor, indices_L: Tensor, out_LV: Tensor, arena: StepArena) -> None:
        """Logits [L, V] fp32 of the rows ``indices`` [L] int64 of what :meth:`forward` gave; L is at most T."""

    def reserve(self, arena: StepArena) -> None:
        """Takes every buffer that :meth:`forward` and :meth:`logits` take, so that ``arena`` knows its size."""


class Encoder(Model, Protocol):
    """A model that reads whole sequences, each token seeing those behind it too, and keeps nothing of them."""

    def encode(self, token_ids_T: Tensor, positions_T: Tensor, sequences: PackedSequences, arena: StepArena) -> Tensor:
        """Final hidden states [T, D] of packed sequences, a buffer of ``arena``.

        Args:
            token_ids_T: [T] int64.
            positions_T: [T] int64, from 0 in each sequence.
            sequences: where each begins and ends.
            arena: begun with T rows.
        """
