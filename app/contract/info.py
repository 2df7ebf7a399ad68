"""Facts about a runner, and what its KV cache is made of. Sizes are bytes."""

from __future__ import annotations

import msgspec

NO_BLOCK = -1
"""Entry of a block table where a group keeps nothing: what has left a window, what lies before a cached prefix's last
window, a boundary without a checkpoint. Kernels neither read nor write the block of such an entry."""


class KVCacheGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that share block tables and pages of one size: all full-attention layers, all layers of one window, …

    Entry b of a sequence's table is the block of its positions ``[b * block_size, (b + 1) * block_size)``:

    * ``full``: their keys and values, or latents; a token reads the blocks of all positions up to its own.
    * ``sliding``: the same; a token at position p reads positions above ``p - window`` alone.
    * ``state``: one recurrent state, that after the last of those positions that has been computed. A row of tokens
      ``[start, end)`` reads the state of entry ``(start - 1) // block_size`` and leaves its own in entry
      ``(end - 1) // block_size``; if it passes a boundary of blocks, it leaves the state at the last one in entry
      ``end // block_size - 1`` too. No row reads a state that another row of its step writes.
    * ``counted``: nothing; the runner keeps what it needs by itself, and a block stands for the room that this takes.
    """

    kind: str
    """``full``, ``sliding``, ``state`` or ``counted``."""
    layers: tuple[int, ...]
    """Indices of the model's layers that keep pages, ascending; one that keeps two things counts as two. Others may
    attend over the pages of these."""
    num_kv_heads: int = 0
    """Of each layer's keys and values, like ``head_dim``. Latents, which are both at once, count as one head; states
    have neither."""
    head_dim: int = 0
    dtype: str
    """Dtype of keys and values. In a ``state`` group that of activations, which the convolution keeps; matrices are
    float32."""
    bytes_per_block: int
    """Bytes of a block of all layers of the group: keys and values, or states; scales included."""
    num_blocks: int = 0
    """Blocks of the group's pages, 0 to ``num_blocks - 1``, all for requests; 0 before they are planned."""
    window: int | None = None
    """Positions that a token sees, itself included; None in groups that are not ``sliding``."""

    @property
    def num_layers(self) -> int:
        """Layers of the group."""
        return len(self.layers)

    def most_blocks(self, num_tokens: int, block_size: int, *, chunk: int, steps: int = 1) -> int:
        """Blocks that a sequence holds at once, at most, while it grows to ``num_tokens``.

        Args:
            num_tokens: tokens of the sequence in the end.
            block_size: tokens of a block.
            chunk: tokens of the sequence's rows, at most.
            steps: steps under way at once, at most.
        """
        all_blocks = -(-num_tokens // block_size)
        if self.kind == "state":
            return min(all_blocks, 1 + 2 * steps)  # what a row reads; its end, and the last boundary before it
        if self.window is None:
            return all_blocks
        # So many positions in a row, wherever they begin.
        return min(all_blocks, (self.window - 1 + steps * chunk + block_size - 2) // block_size + 1)


class KVCacheSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a model keeps between steps."""

    block_size: int
    """Tokens of a block."""
    groups: list[KVCacheGroup]
    """Groups of layers, each with blocks and tables of its own."""

    @property
    def dtype(self) -> str:
        """Dtype of keys and values; that of states where there are no others; ``none`` where nothing is kept."""
        kept = [group.dtype for group in self.groups]
        return next((group.dtype for group in self.groups if group.kind != "state"), kept[0] if kept else "none")


class RunnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a loaded model; none changes while its process lives."""

    max_model_len: int
    """Tokens of the longest sequence."""
    vocab_size: int
    """Width of the logits: valid token ids are below it."""
    num_parameters: int
    """Elements of the whole model's weights, tied ones once."""
    weight_bytes: int
    """Bytes of all weights of all ranks, tied ones once."""
    kv_cache: KVCacheSpec
    """KV cache of one rank; all ranks have the same."""
    kv_cache_bytes: int
    """Bytes of all pages of all ranks."""
    dtype: str
    """Dtype of activations, and of weights that are not quantised."""
    quantization: str = "none"
    """Format of the weights: ``none``, ``int8``, ``int8_weight_only`` or ``file``."""
    kernels: str = "torch"
    """What runs the linear layers: an instruction set of the native kernels, ``triton``, or ``torch``."""
    device: str
    """Device that the model runs on; with several ranks, the first rank's."""
    pipeline_depth: int = 1
    """Steps that are best under way at once."""
    verifies_drafts: bool = False
    """Whether a row may sample several positions, each with the bits that it has in a row of its own."""
    tasks: tuple[str, ...] = ("generate",)
    """Names of the tasks that the model offers."""
    max_encode_len: int = 0
    """Tokens of the longest sequence that can be encoded; 0: the model does not encode."""
    via: str | None = None
    """The library that computes the model, slowly: ``transformers``; None: tuili does."""

    @property
    def kv_cache_dtype(self) -> str:
        """Dtype of keys and values; see :attr:`KVCacheSpec.dtype`."""
        return self.kv_cache.dtype


class MemoryNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine will take, all ranks together; told before it is started."""

    weights: int
    """Bytes of all weights."""
    kv_cache: int
    """Bytes of all pages."""
