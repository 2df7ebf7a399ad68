"""Whether a checkpoint's output head and token embedding are one tensor (torch-free).

Decided from the files, as transformers does: a config says ``tie_word_embeddings`` of checkpoints that hold another
``lm_head.weight``, and those two are kept apart. It has to be known before memory is planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.checkpoints.formats import SAFETENSORS, format_of
from app.checkpoints.header import TensorEntry, WeightError
from app.checkpoints.safetensors_header import read_safetensors_header
from app.models.names import DecoderNames

_CHUNK_BYTES = 1 << 20
_SCALED = ("I8", "F8_E4M3")
"""Safetensors' names of int8 and FP8, whose values mean nothing without the scales beside them."""


def ties_head(configured: bool, files: Sequence[Path], names: DecoderNames) -> bool:
    """Whether the head is the embedding: what is configured, unless ``files`` hold both tensors.

    Then it is exactly if they are equal, bit by bit. GGUF files are not opened: the config derived from one says what
    is in it.

    Args:
        configured: what the config says.
        files: the model's weight files.
        names: the family's names.

    Raises:
        WeightError: a file that is unreadable, truncated or malformed.
    """
    found: dict[str, tuple[Path, TensorEntry]] = {}
    for file in files:
        if format_of(file) is SAFETENSORS:
            found |= {entry.name: (file, entry) for entry in read_safetensors_header(file)}
    other_name = names.other_base + names.embedding_weight.removeprefix(names.base)
    embedding = found.get(names.embedding_weight) or found.get(other_name)
    head = next((found[name] for name in (names.head_weight, *names.other_head_weights) if name in found), None)
    if embedding is None or head is None:
        return configured
    return equal_data(*embedding, *head)


def equal_data(file: Path, entry: TensorEntry, other_file: Path, other: TensorEntry) -> bool:
    """Whether two tensors have one type, shape and content. Reads no further than to the first difference.

    Raises:
        WeightError: a file cannot be read.
    """
    if (entry.dtype, entry.shape) != (other.dtype, other.shape) or entry.dtype in _SCALED:
        return False
    try:
        with file.open("rb") as one, other_file.open("rb") as two:
            one.seek(entry.offset)
            two.seek(other.offset)
            left = entry.nbytes
            while left > 0:
                size = min(left, _CHUNK_BYTES)
                if one.read(size) != two.read(size):
                    return False
                left -= size
    except OSError as e:
        raise WeightError(f"{e.filename or file}: {e.strerror or e}") from None
    return True
