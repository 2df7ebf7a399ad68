"""What a row of the table of architectures says, and the modules of a family that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

if TYPE_CHECKING:
    from app.models.base import Decoder, Encoder
    from app.models.config import ModelConfig
    from app.models.names import FamilyNames
    from app.quant.placement import Placement


class ReadConfig(Protocol):
    """A family's ``config.read``."""

    def __call__(self, architecture: str, config: Mapping[str, Any], /) -> ModelConfig:
        """Reads a ``config.json`` that names ``architecture``.

        Raises:
            ConfigError: a field is missing, malformed, or of a value that is not supported.
        """


class BuildModel(Protocol):
    """A family's ``model.build``."""

    def __call__(self, config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
        """The model, its weights uninitialised.

        Args:
            max_positions: positions from 0 that sequences will use; sizes the tables of rotary angles.
        """


class BuildEncoder(Protocol):
    """An encoder family's ``model.build_encoder``."""

    def __call__(self, config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Encoder:
        """The model, its weights uninitialised; arguments as of :class:`BuildModel`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One family of models."""

    title: str
    """Name that people know it by."""
    examples: str
    """Published models of it, as ``tuili models`` shows them."""
    module: str
    """The family's package, e.g. ``app.models.llama``."""
    hf: tuple[str, ...]
    """Names of the family in ``architectures`` of a ``config.json``."""
    gguf: tuple[str, ...] = ()
    """Names of the family in ``general.architecture`` of GGUF files; empty: none are read."""
    gguf_as: tuple[str, ...] = ()
    """Names under which another family's row reads GGUF files of this one."""
    tasks: tuple[str, ...] = ("generate",)
    """Names of the tasks that its models offer."""
    tokenizer: str | None = None
    """transformers' class of its tokenizer where the files name none, if that class does more than read them."""
    tested: Literal["tiny", "trained"] = "tiny"
    """By which models the test suite holds it to transformers: tiny ones with random weights, or a trained one too."""

    @property
    def generates(self) -> bool:
        """Whether it is a decoder; otherwise it encodes alone."""
        return "generate" in self.tasks

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of weights that are read: safetensors of each family, GGUF of most."""
        return ("safetensors", "gguf") if self.gguf or self.gguf_as else ("safetensors",)

    @property
    def read(self) -> ReadConfig:
        """The function that reads its ``config.json``."""
        return cast("ReadConfig", import_module(f"{self.module}.config").read)

    @property
    def names(self) -> FamilyNames:
        """Names of tensors and metadata in its files."""
        return cast("FamilyNames", import_module(f"{self.module}.names").NAMES)

    @property
    def build(self) -> BuildModel:
        """The function that builds the model; imports torch."""
        return cast("BuildModel", import_module(f"{self.module}.model").build)

    @property
    def build_encoder(self) -> BuildEncoder:
        """The function that builds the model of a family that encodes; imports torch."""
        return cast("BuildEncoder", import_module(f"{self.module}.model").build_encoder)
