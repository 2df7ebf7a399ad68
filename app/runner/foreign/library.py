"""What the installed transformers knows: classes of models by what a ``config.json`` names, and configs that it reads.

transformers is no dependency of a server: it is imported when a model is served through it. Code that a model's files
bring or name (``auto_map``, kernels of a hub) is never run, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from app.runner.errors import RunnerError

_CONTEXT_FIELDS = (
    "max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length",
    "context_length",
)  # fmt: skip
"""What families call the tokens of their longest sequence."""
DEFAULT_CONTEXT = 4096
"""Tokens of the longest sequence where a config names none."""


@dataclass(frozen=True, slots=True)
class ForeignConfig:
    """A model directory as transformers understands it."""

    directory: Path
    architecture: str
    """Name of the model's class."""
    model_class: Any
    """transformers' class of the model."""
    config: Any
    """transformers' config of the model."""

    @property
    def _text(self) -> Any:
        """The part of the config that is about text."""
        return self.config.get_text_config(decoder=True)

    @property
    def context_length(self) -> int | None:
        """Tokens of the longest sequence that the config names; None where it names none."""
        sizes = (getattr(self._text, name, None) for name in _CONTEXT_FIELDS)
        return next((size for size in sizes if isinstance(size, int) and size > 0), None)

    @property
    def num_layers(self) -> int:
        """Layers of the model; 1 where its config does not say."""
        return getattr(self._text, "num_hidden_layers", None) or 1

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The model, its weights as transformers initialises them. Tables that it keeps in fp32 stay so.

        Raises:
            RunnerError: transformers makes none of such a config.
        """
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            with device:
                return self.model_class(self.config)
        except Exception as error:  # noqa: BLE001 - whatever a model of theirs raises
            raise RunnerError(f"{self.directory}: transformers makes no model of it: {one_line(error)}") from None
        finally:
            torch.set_default_dtype(before)


def read_config(directory: Path) -> ForeignConfig:
    """Reads a model directory's ``config.json`` by transformers.

    Raises:
        RunnerError: transformers is not installed or cannot read it, or the model is no causal language model that
            transformers has.
    """
    library, path = _library(), directory / "config.json"
    fields = _json(path)
    mapping = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    known, version = library.CONFIG_MAPPING, f"transformers {library.__version__}"
    remote = "; the code that its auto_map names is never run" if "auto_map" in fields else ""
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise RunnerError(f"{path}: {version} does not know model_type = {kind!r}{remote}")
    _refuse_named_code(path, fields)
    if (directory / "adapter_config.json").exists():
        raise RunnerError(f"{directory / 'adapter_config.json'}: no adapters are served; merge it into the weights")
    if fields.get("quantization_config"):
        raise RunnerError(f"{path}: quantization_config: via transformers only floating weights are served")
    classes = {name for names in mapping.values() for name in ((names,) if isinstance(names, str) else names)}
    names = fields.get("architectures") or mapping.get(kind) or []
    names = [names] if isinstance(names, str) else list(names)
    architecture = next((name for name in names if name in classes), None)
    if architecture is None:
        raise RunnerError(f"{path}: {version} has no causal language model for architectures = {names}{remote}")
    try:
        config = library.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return ForeignConfig(directory, architecture, getattr(library, architecture), config)
    except Exception as error:  # noqa: BLE001 - whatever a config of theirs raises
        raise RunnerError(f"{path}: {version} does not read it: {one_line(error)}") from None


def _refuse_named_code(path: Path, fields: dict[str, Any]) -> None:
    """Raises :class:`RunnerError` for a config that names kernels of a hub, which transformers would fetch and run."""
    for name, value in fields.items():
        named = value.values() if isinstance(value, dict) else [value]
        if name.endswith("_implementation") and any("/" in each for each in named if isinstance(each, str)):
            raise RunnerError(f"{path}: {name} = {value!r} names code outside of transformers, which is never run")
        if isinstance(value, dict):
            _refuse_named_code(path, value)


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _library() -> Any:
    """The installed transformers, which writes nothing on its own from here on.

    Raises:
        RunnerError: it is not installed.
    """
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # read when it is imported
    try:
        library = import_module("transformers")
    except ImportError as error:
        raise RunnerError(f"--via transformers: {error}; pip install 'tuili[via]'") from None
    logging = import_module("transformers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return library


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunnerError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise RunnerError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise RunnerError(f"{path}: not a JSON object")
    return fields
