"""The architectures that are served, a row for each family; a family's modules are imported when it is asked for.

A family is a package of three modules: ``config`` reads its ``config.json``, ``names`` knows what its files call
tensors and metadata (both without torch), ``model`` builds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from app.models.config_fields import ConfigError

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

    module: str
    """The family's package, e.g. ``app.models.llama``."""
    hf: tuple[str, ...]
    """What ``architectures`` of its ``config.json`` says."""
    gguf: tuple[str, ...] = ()
    """What ``general.architecture`` of its GGUF files says; empty: none are read."""
    tasks: tuple[str, ...] = ("generate",)
    """What it can be asked for."""
    tokenizer: str | None = None
    """transformers' class of its tokenizer where the files name none, if that class does more than read them."""

    @property
    def generates(self) -> bool:
        """Whether it is a decoder; otherwise it encodes alone."""
        return "generate" in self.tasks

    @property
    def read(self) -> ReadConfig:
        """Parses its ``config.json``."""
        return cast("ReadConfig", import_module(f"{self.module}.config").read)

    @property
    def names(self) -> FamilyNames:
        """What its files call tensors and metadata."""
        return cast("FamilyNames", import_module(f"{self.module}.names").NAMES)

    @property
    def build(self) -> BuildModel:
        """Builds the model; imports torch."""
        return cast("BuildModel", import_module(f"{self.module}.model").build)

    @property
    def build_encoder(self) -> BuildEncoder:
        """Builds the model of a family that encodes; imports torch."""
        return cast("BuildEncoder", import_module(f"{self.module}.model").build_encoder)


ARCHITECTURES = (
    Architecture(module="app.models.llama", hf=("LlamaForCausalLM",), gguf=("llama",)),
    # transformers makes the second of a Mistral with layer_types. GGUF files of either say "llama".
    Architecture(module="app.models.mistral", hf=("MistralForCausalLM", "MinistralForCausalLM")),
    Architecture(module="app.models.qwen2", hf=("Qwen2ForCausalLM",), gguf=("qwen2",), tokenizer="Qwen2Tokenizer"),
    Architecture(module="app.models.qwen3", hf=("Qwen3ForCausalLM",), gguf=("qwen3",), tokenizer="Qwen2Tokenizer"),
    Architecture(
        module="app.models.qwen3moe", hf=("Qwen3MoeForCausalLM",), gguf=("qwen3moe",), tokenizer="Qwen2Tokenizer"
    ),
    # Qwen3.5 has a tokenizer class of its own, which brings the same tokens.
    Architecture(
        module="app.models.qwen3_next",
        hf=("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
        gguf=("qwen35",),
        tokenizer="Qwen2Tokenizer",
    ),
    Architecture(module="app.models.gpt2", hf=("GPT2LMHeadModel",), gguf=("gpt2",), tokenizer="GPT2Tokenizer"),
    # The second sees images too, but for its text part.
    Architecture(
        module="app.models.gemma3",
        hf=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        gguf=("gemma3",),
        tokenizer="GemmaTokenizer",
    ),
)


def find(architecture: str) -> Architecture:
    """The row of a name of ``config.json``'s ``architectures``.

    Raises:
        ConfigError: nobody serves it; the message lists those that are served.
    """
    for row in ARCHITECTURES:
        if architecture in row.hf:
            return row
    supported = ", ".join(name for row in ARCHITECTURES for name in row.hf)
    raise ConfigError(f"architectures = {architecture!r} is not supported; supported are {supported}")


def find_gguf(architecture: str) -> Architecture:
    """The row of a GGUF file's ``general.architecture``.

    Raises:
        ConfigError: no such files are read; the message lists those that are.
    """
    for row in ARCHITECTURES:
        if architecture in row.gguf:
            return row
    supported = ", ".join(name for row in ARCHITECTURES for name in row.gguf)
    raise ConfigError(f"architecture {architecture!r} is not supported; supported are {supported}")


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Reads a Hugging Face style ``config.json``.

    Raises:
        ConfigError: unknown architecture, missing or malformed field, or a setting that is not supported.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures = {names!r} names no model class")
    served = {name for row in ARCHITECTURES for name in row.hf}
    architecture = next((name for name in names if name in served), names[0])
    return find(architecture).read(architecture, config)
