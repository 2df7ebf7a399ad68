"""A checkpoint's format is what its first bytes say, whatever the file is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.checkpoints.formats import FORMATS, format_of
from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from tests.store.tiny import random_weights, write_gguf


def test_a_format_is_known_by_its_beginning(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "0a1b")
    gguf = write_gguf(tmp_path / "m.gguf", random_weights()).rename(tmp_path / "m.safetensors")
    assert [stored.name for stored in iter_weights([tmp_path / "0a1b"])] == ["a"]
    assert "model.norm.weight" in {stored.name for stored in iter_weights([gguf])}


@pytest.mark.parametrize("suffix", [row.suffix for row in FORMATS])
def test_a_damaged_file_is_of_the_format_of_its_name(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"m{suffix.upper()}"
    file.write_bytes(b"\0" * 64)
    assert format_of(file).suffix == suffix
    with pytest.raises(WeightError, match=file.name):
        list(iter_weights([file]))


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"PK\x03\x04" + b"\0" * 64)
    with pytest.raises(WeightError, match=r"pytorch_model\.bin: only \.safetensors and \.gguf files are read"):
        list(iter_weights([file]))


def test_every_row_has_its_reader() -> None:
    assert all(callable(row.tensors) for row in FORMATS)
