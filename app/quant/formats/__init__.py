"""Formats of linear layers' weights, a row each; a format's module is imported when it is asked for (torch-free)."""

from __future__ import annotations

import enum
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from app.quant.formats.base import Storage


class WeightFormat(enum.Enum):
    """How the weights of linear layers are kept.

    A row: the format's label, the value of the setting ``quantization`` that asks for it, and the module of this
    package in which its :attr:`storage` has the row's name. Of the formats of one setting the first that suits a
    backend and a model is served: the fastest comes first.
    """

    PACKED_BF16 = "packed bfloat16", "none", "packed"
    """In the layout of the native kernels."""
    PLAIN = "plain", "none", "plain"
    """As tensors of the model's dtype."""
    PACKED_INT8 = "packed int8", "int8", "packed"
    """In the layout of the native kernels; activations int8, with a scale a group."""
    INT8 = "int8", "int8", "int8"
    """As int8 tensors with a scale for each output; activations int8, with a scale a group."""
    W8A8 = "int8 w8a8", "int8", "int8"
    """Likewise with a scale a token, for GPUs; embedding and head stay whole, as few bytes are in them there."""
    W8A16 = "int8 w8a16", "int8_weight_only", "int8"
    """Likewise with floating activations."""
    BLOCKS = "blocks of the file", "file", "blocks"
    """In the blocks of a GGUF file, laid out for the native kernels; activations int8, with a scale a group."""

    def __init__(self, label: str, quantization: str, module: str) -> None:
        self.label = label
        """Names the format in the files of packed weights."""
        self.quantization = quantization
        self._module = module

    @property
    def storage(self) -> Storage:
        """Makes weights of the format; imports torch."""
        return cast("Storage", getattr(import_module(f"{__name__}.{self._module}"), self.name))


QUANTIZATIONS: Final = ("auto", *dict.fromkeys(row.quantization for row in WeightFormat))
"""Values of the setting ``quantization``; ``auto`` is the fastest that keeps quality."""
