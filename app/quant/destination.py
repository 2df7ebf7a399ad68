"""Where a checkpoint's tensor goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Destination(Protocol):
    """Takes one tensor of a checkpoint in, in whatever format it is kept. A ``torch.Tensor`` is one."""

    @property
    def shape(self) -> Sequence[int]:
        """Shape of the checkpoint's tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once it is here."""

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""

    def copy_(self, source: Tensor, /) -> object:
        """Stores a floating tensor of that shape."""


@runtime_checkable
class Kept(Protocol):
    """A destination whose weight can be written to the disk as it lies in memory, and read back into place."""

    def buffers(self) -> Iterable[Tensor]:
        """The weight's memory, which may be shared with other destinations; always in the same order."""


class Tee:
    """One tensor of a checkpoint that is kept twice, say as a table to look up in and as a packed weight."""

    def __init__(self, *destinations: Destination) -> None:
        self.parts = destinations

    @property
    def shape(self) -> Sequence[int]:
        """Shape of the checkpoint's tensor."""
        return self.parts[0].shape

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(part.nbytes for part in self.parts)

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""
        return self.parts[0].numel()

    def copy_(self, source: Tensor, /) -> None:
        """Stores a tensor in each."""
        for part in self.parts:
            part.copy_(source)


class Extent(NamedTuple):
    """Indices ``start`` to ``stop`` of a tensor's dimension ``dim``, all of its others."""

    dim: int
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """That much of a tensor, a view."""
        return tensor.narrow(self.dim, self.start, self.stop - self.start)


class Part:
    """A tensor of a checkpoint of which one rank keeps an extent alone; no more than that needs to be read.

    Args:
        destination: takes the extent.
        whole: how long the extent's dimension is in the checkpoint.
    """

    def __init__(self, destination: Destination, extent: Extent, whole: int) -> None:
        self.destination = destination
        self.extent = extent
        shape = list(destination.shape)
        shape[extent.dim] = whole
        self.shape: Sequence[int] = tuple(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of what this rank keeps."""
        return self.destination.nbytes

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""
        return math.prod(self.shape)

    def copy_(self, source: Tensor, /) -> None:
        """Stores the extent of the checkpoint's whole tensor."""
        self.destination.copy_(self.extent.of(source))


class Adapted:
    """A tensor that a checkpoint holds in another form than a model does.

    Args:
        destination: takes it in the model's form.
    """

    parameters: tuple[float, ...] = ()
    """What a ``config.json`` says of the form: files of packed weights are for these alone."""
    moves_rows = False
    """Whether :meth:`adapt` moves rows and no more, whatever they consist of."""

    def __init__(self, destination: Destination, shape: Sequence[int]) -> None:
        self.destination = destination
        self.shape: Sequence[int] = tuple(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return self.destination.nbytes

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""
        return math.prod(self.shape)

    def copy_(self, source: Tensor, /) -> None:
        """Stores the checkpoint's tensor in the model's form."""
        self.destination.copy_(self.adapt(source))

    def adapt(self, source: Tensor) -> Tensor:
        """The model's form of the checkpoint's tensor."""
        raise NotImplementedError


class Transposed(Adapted):
    """A matrix [K, N] of a checkpoint whose model has [N, K]."""

    def __init__(self, destination: Destination) -> None:
        super().__init__(destination, destination.shape[::-1])

    def adapt(self, source: Tensor) -> Tensor:
        """Its transpose."""
        return source.t().contiguous()


class OneRow(Adapted):
    """A vector [N] of a model whose checkpoint has [1, N]."""

    def __init__(self, destination: Destination) -> None:
        super().__init__(destination, (1, *destination.shape))

    def adapt(self, source: Tensor) -> Tensor:
        """Its one row."""
        return source[0]


class PlusOne(Adapted):
    """A norm's weight w of a checkpoint whose model multiplies by 1 + w."""

    def __init__(self, destination: Destination) -> None:
        super().__init__(destination, destination.shape)

    def adapt(self, source: Tensor) -> Tensor:
        """1 + w, in fp32."""
        return source.float() + 1.0


class PairsApart(Adapted):
    """Rows of heads whose rotated pairs are neighbours in a checkpoint, and half a rotation apart in a model.

    Args:
        heads: that the rows are.
        width: leading rows of each head that are rotated.
    """

    moves_rows = True

    def __init__(self, destination: Destination, heads: int, width: int) -> None:
        super().__init__(destination, destination.shape)
        self.parameters = (heads, width)
        self._heads, self._width = heads, width

    def adapt(self, source: Tensor) -> Tensor:
        """Rows of each head: first the firsts of its pairs, then the seconds, then what is not rotated."""
        rows = source.reshape(self._heads, -1, *source.shape[1:])
        turned, rest = rows[:, : self._width], rows[:, self._width :]
        return torch.cat((turned[:, 0::2], turned[:, 1::2], rest), dim=1).flatten(0, 1)


def pairs_apart(destination: Destination, head_dim: int, width: int) -> Destination:
    """A :class:`PairsApart` of heads of ``head_dim`` rows, of which a rank may have a part; no more of it is read."""
    if isinstance(destination, Part):
        whole = destination.shape[destination.extent.dim]
        return Part(pairs_apart(destination.destination, head_dim, width), destination.extent, whole)
    return PairsApart(destination, destination.shape[0] // head_dim, width)


class Scaled(Adapted):
    """A tensor of a checkpoint that a model has times a factor."""

    def __init__(self, destination: Destination, factor: float) -> None:
        super().__init__(destination, destination.shape)
        self.parameters = (factor,)
        self._factor = factor

    def adapt(self, source: Tensor) -> Tensor:
        """The product, in fp32."""
        return source.float() * self._factor


class Elsewhere:
    """A tensor of a checkpoint that another rank keeps."""

    def __init__(self, *shape: int) -> None:
        self.shape: Sequence[int] = shape
        self.nbytes = 0

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""
        return math.prod(self.shape)

    def copy_(self, source: Tensor, /) -> None:
        """Leaves it to that rank."""


class View:
    """A tensor that is kept in another order of dimensions than its checkpoint's.

    Args:
        memory: contiguous, what is kept.
        view: the same elements, or some of them, in the checkpoint's shape.
    """

    def __init__(self, memory: Tensor, view: Tensor) -> None:
        self.memory = memory
        self._view = view
        self.shape: Sequence[int] = view.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self._view.nbytes

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""
        return self._view.numel()

    def copy_(self, source: Tensor, /) -> None:
        """Stores the elements where they are kept."""
        self._view.copy_(source)


class Interleaved:
    """A tensor of a checkpoint whose rows go to several places in turn: so many to the first, so many to the second, …,
    and from the first again, ``groups`` times. With one group the places' tensors are stacked.

    Args:
        parts: each takes the same number of rows of every group, in order.
        groups: divides every part's rows.
    """

    def __init__(self, parts: Sequence[Destination], groups: int = 1) -> None:
        if any(part.shape[0] % groups or part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise ValueError(f"{[list(part.shape) for part in parts]} cannot be interleaved {groups} times")
        self.parts = parts
        self.groups = groups
        self.shape: Sequence[int] = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    def numel(self) -> int:
        """Elements of the checkpoint's tensor."""
        return math.prod(self.shape)

    def split(self, source: Tensor) -> Iterator[tuple[Destination, Tensor]]:
        """Each part and its rows."""
        sizes = [part.shape[0] // self.groups for part in self.parts]
        rows = torch.split(source.reshape(self.groups, sum(sizes), *source.shape[1:]), sizes, dim=1)
        for part, of_part in zip(self.parts, rows, strict=True):
            yield part, of_part.flatten(0, 1)

    def copy_(self, source: Tensor, /) -> None:
        """Stores each part's rows."""
        for part, rows in self.split(source):
            part.copy_(rows)
