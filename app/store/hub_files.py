"""Which files of a hub's repository a model is made of."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from app.checkpoints.gguf_split import split_name
from app.nearest import did_you_mean
from app.store.errors import StoreError
from app.store.files import TEMPLATES
from app.store.hub_id import HubId

WEIGHTS = (".safetensors", ".gguf")
_WANTED = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "LICENSE*",
)
_UNWANTED = ("consolidated*", "adapter*")
"""The same weights once more in another layout, and weights that are no model by themselves."""
_NO_MODEL = ("mmproj", "imatrix")
"""Beginnings of the names of GGUF files that go with a model: what sees images, what a quantiser noted."""
_USUAL = ("Q4_K_M", "Q8_0", "Q4_0", "BF16", "F16")
"""Quantisations that are taken, in this order, of a repository of GGUF files of which none is named."""
_SHOWN = 12


def wanted_files(hub_id: HubId, names: Iterable[str]) -> list[str]:
    """Those of a repository's files that are fetched: safetensors with what belongs to them, or one model's GGUF files.

    Raises:
        StoreError: there are no weights that can be used, or none of the quantisation that is asked for.
    """
    everything = list(names)
    licences = [name for name in everything if fnmatch.fnmatchcase(name, "LICENSE*")]
    if hub_id.quant is not None:
        return [*_of_quant(hub_id, hub_id.quant, everything), *licences]
    found = [name for name in everything if _is_wanted(name)]
    if any(name.endswith(".safetensors") for name in found):
        return found
    models = _gguf_models(everything)
    if not models:
        raise StoreError(_no_weights(hub_id, everything))
    usual = (stem for quant in _USUAL for stem in models if _is_of(stem, quant))
    return [*models[next(usual, next(iter(models)))], *licences]


def is_gguf(name: str) -> bool:
    """Whether a file is called a GGUF file."""
    return name.lower().endswith(".gguf")


def _of_quant(hub_id: HubId, quant: str, names: Sequence[str]) -> list[str]:
    models = _gguf_models(names)
    found = [stem for stem in models if _is_of(stem, quant)]
    if len(found) == 1:
        return models[found[0]]
    if found:
        raise StoreError(f"{hub_id}: several files are of {quant!r}: {_listed(found)}; write more of a name")
    if not models:
        raise StoreError(f"{hub_id}: {hub_id.repo} has no GGUF files, of which alone a name follows a colon")
    ends = {re.split(r"[.-]", stem)[-1] for stem in models}
    raise StoreError(f"{hub_id}: no GGUF file of {quant!r}{did_you_mean(quant, ends)}; there are: {_listed(models)}")


def _gguf_models(names: Iterable[str]) -> dict[str, list[str]]:
    """Models in GGUF files, by name, each with its files in order."""
    models: dict[str, list[str]] = {}
    for name in sorted(filter(is_gguf, names)):
        path = PurePosixPath(name)
        if not path.name.lower().startswith(_NO_MODEL):
            split = split_name(path)
            models.setdefault(path.stem if split is None else split.stem, []).append(name)
    return models


def _is_of(stem: str, quant: str) -> bool:
    """Whether a model's name is, or ends with, ``quant``: that of a file with or without its ending."""
    asked, stem = quant.lower().removesuffix(".gguf"), stem.lower()
    return stem == asked or stem.endswith((f"-{asked}", f".{asked}", f"_{asked}"))


def _is_wanted(name: str) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    directory, _, file = name.rpartition("/")
    if directory:
        return directory == TEMPLATES and file.endswith(".jinja")
    return matches(_WANTED) and not matches(_UNWANTED)


def _no_weights(hub_id: HubId, names: Sequence[str]) -> str:
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    instead = f" (only {pickled[0]}, a pickled file, which is never opened)" if pickled else ""
    return f"{hub_id} has no safetensors weights{instead}"


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
