"""What becomes of queries and keys on their way to attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Preparation:
    """As the arguments of :func:`~app.kernels.qk_norm_rope_kv_write.qk_norm_rope_kv_write` of these names."""

    rope: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float
    q_scale: Tensor | None
    pair_distance: int | None = None
    value_norm: bool = False
    key_is_value: bool = False
    """Whether ``qkv`` holds no values: the keys as they stand there are those too."""

    @property
    def rotary_dim(self) -> int:
        """Elements of a head that are rotated."""
        return 0 if self.rope is None else self.rope.shape[-1]

    @property
    def distance(self) -> int:
        """Distance from an element that is rotated to the one that it is rotated with, in elements."""
        return self.rotary_dim // 2 if self.pair_distance is None else self.pair_distance


def norms_whole(q_norm: Tensor | None, head_dim: int) -> bool:
    """Whether a weight is of a norm over all heads together."""
    return q_norm is not None and q_norm.numel() != head_dim
