"""What runs the kernels on a device, and what it wants of weights, pages and workspaces.

Everything above the kernels asks a :class:`Backend`; only the ops themselves (:mod:`app.kernels.dispatch`) look which
one it is. A runner has one, chosen once (:func:`choose_backend`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.linear.pack import unpackable
from app.kernels.native.library import allocate
from app.kernels.paged_attention.cpu import can_pack
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.pages import KVPages, LatentPages, Pages, PageShape, StatePages
from app.kernels.recorders import GraphRecorder, ProgramRecorder, Recorder
from app.kernels.sample.workspace import SampleWorkspace, new_sample_workspace
from app.kernels.types import ActFormat, NativeWeight, Weight


class Backend(ABC):
    """The kernels of one device."""

    int8_input = ActFormat.INT8
    """The format in which int8 weights want their input, if activations are int8."""
    pads_steps = False
    """Whether steps may be padded, by rows of one further slot that write to one further block in each KV group."""
    packs_weights = False
    """Whether linear layers take weights in a layout of their own (:data:`~app.kernels.types.NativeWeight`)."""
    shortcoming: str | None = None
    """Why there are no fast kernels here; None where there are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def name(self, weight: Weight) -> str:
        """What runs a linear layer of such a weight: an instruction set, ``triton`` or ``torch``."""

    def refuses_weights(self, in_features: int, dtype: torch.dtype) -> str | None:
        """Why weights [N, ``in_features``] of ``dtype`` cannot be packed; None where they can."""
        return f"{self.device} packs no weights of {dtype} [N, {in_features}]"

    def packs_pages(self, shape: KVPages, block_size: int, *, heads_per_kv: int) -> bool:  # noqa: ARG002
        """Whether attention takes such pages in a layout of its own, which is what makes it fast.

        Args:
            heads_per_kv: query heads that share a key/value head.
        """
        return False

    def new_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for pages, uninitialised; on a CPU it is taken from the operating system as it is written."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def allocate_pages(self, shape: PageShape, num_blocks: int, block_size: int, *, heads_per_kv: int = 1) -> Pages:
        """One layer's pages, uninitialised: no kernel reads what no token of the sequence has written.

        Args:
            num_blocks: for requests; where steps are padded there is one more, the last.
            heads_per_kv: query heads that share a key/value head.
        """
        num_blocks += self.pads_steps
        if isinstance(shape, LatentPages | StatePages):
            return shape.new(num_blocks, block_size, self.new_memory)
        packed = self.packs_pages(shape, block_size, heads_per_kv=heads_per_kv)
        return shape.new(num_blocks, block_size, self.new_memory, packed=packed)

    def sample_workspace(self, max_rows: int, vocab_size: int) -> SampleWorkspace | None:  # noqa: ARG002
        """Workspace for sampling so many rows; None where it needs none."""
        return None

    def split_workspace(
        self,
        max_rows: int,  # noqa: ARG002
        shapes: Iterable[tuple[int, int, int]],  # noqa: ARG002
    ) -> Tensor | None:
        """Workspace for attention of so many rows; None where it needs none.

        Args:
            shapes: query heads, key/value heads and width of a head, of each kind of layer.
        """
        return None

    def recorder(self, head: Weight) -> Recorder | None:  # noqa: ARG002
        """Records steps of a model with that output head; None where each kernel is launched by itself."""
        return None


class NativeBackend(Backend):
    """The C++ kernels on a CPU."""

    packs_weights = True

    def name(self, weight: Weight) -> str:
        return dispatch.isa() if isinstance(weight, NativeWeight) else "torch"

    def refuses_weights(self, in_features: int, dtype: torch.dtype) -> str | None:
        return unpackable(in_features, dtype)

    def packs_pages(self, shape: KVPages, block_size: int, *, heads_per_kv: int) -> bool:
        return can_pack((1, 2, shape.num_heads, block_size, shape.head_dim), shape.dtype, heads_per_kv)

    def new_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return allocate(shape, dtype)

    def recorder(self, head: Weight) -> Recorder | None:
        return ProgramRecorder() if isinstance(head, NativeWeight) else None


class TritonBackend(Backend):
    """Triton's kernels on a GPU, or interpreted on a CPU."""

    int8_input = ActFormat.INT8_TOKEN
    pads_steps = True

    def name(self, weight: Weight) -> str:  # noqa: ARG002
        return "triton"

    def sample_workspace(self, max_rows: int, vocab_size: int) -> SampleWorkspace | None:
        return new_sample_workspace(max_rows, vocab_size, self.device)

    def split_workspace(self, max_rows: int, shapes: Iterable[tuple[int, int, int]]) -> Tensor | None:
        """A workspace for the kind of layer that needs most."""
        rooms = (new_split_workspace(max_rows, *shape, self.device) for shape in shapes)
        return max(rooms, key=Tensor.numel, default=None)

    def recorder(self, head: Weight) -> Recorder | None:  # noqa: ARG002
        return GraphRecorder(self.device)


class ReferenceBackend(Backend):
    """Plain torch on any device."""

    def __init__(self, device: torch.device, shortcoming: str) -> None:
        super().__init__(device)
        self.shortcoming = shortcoming
        if device.type != "cpu":
            self.int8_input = ActFormat.INT8_TOKEN

    def name(self, weight: Weight) -> str:  # noqa: ARG002
        return "torch"


def choose_backend(device: torch.device) -> Backend:
    """The best backend for a device, as far as the process's mode allows it (:func:`dispatch.configure`).

    The meta device, where tensors have shapes alone, counts as a GPU.
    """
    if dispatch.runs_triton_on(device):
        return TritonBackend(device)
    if device.type != "cpu":
        return ReferenceBackend(device, f"Triton, which runs them on {device}, is not installed")
    why = dispatch.unavailable()
    return NativeBackend(device) if why is None else ReferenceBackend(device, why)
