"""The figures of a quality report, and the texts that they are about."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.checkpoints.header import WeightError
from app.checkpoints.int8 import write_int8_checkpoint
from app.checkpoints.loader import iter_weights
from app.quality import texts
from app.quality.measure import Score
from tests.models.tiny import make_reference, save


def test_perplexity_and_agreement() -> None:
    base = Score(4, 4 * math.log(0.25), (1, 2, 3, 4))
    assert base.perplexity == pytest.approx(4.0)
    assert base.agreement(Score(4, 0.0, (1, 2, 9, 9))) == 0.5


@pytest.mark.parametrize("language", list(texts.SHA256))
def test_texts_are_the_pinned_ones(language: str) -> None:
    assert len(texts.read_text(language)) > 10_000


def test_another_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "english.txt").write_text("Call me Ishmael.")
    monkeypatch.setattr(texts, "_DIRECTORY", tmp_path)
    with pytest.raises(ValueError, match="english"):
        texts.read_text("english")


def test_an_int8_checkpoint_reads_back_as_what_it_quantised(tmp_path: Path) -> None:
    source = save(make_reference("qwen3_biases"), tmp_path)
    out = tmp_path / "int8"
    out.mkdir()
    files = sorted(source.glob("*.safetensors"))
    nbytes = write_int8_checkpoint({"model_type": "qwen3"}, files, out, progress=lambda _done, _total: None)
    assert nbytes < sum(stored.nbytes for stored in iter_weights(files)) / 2
    original = {stored.name: stored.read().float() for stored in iter_weights(files)}
    restored = {stored.name: stored.read().float() for stored in iter_weights([out / "model.safetensors"])}
    assert restored.keys() == original.keys()
    for name, tensor in original.items():
        step = tensor.abs().amax(-1, keepdim=True) / 127 if tensor.dim() > 1 else torch.tensor(1e-6)
        assert ((restored[name] - tensor).abs() <= step * 0.51).all(), name


def test_a_model_without_layers_to_quantise_is_an_error(tmp_path: Path) -> None:
    save_file({"h.0.attn.c_attn.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    out = tmp_path / "int8"
    out.mkdir()
    with pytest.raises(WeightError, match="no linear layers"):
        write_int8_checkpoint({}, [tmp_path / "model.safetensors"], out, progress=lambda _done, _total: None)
    assert not list(out.iterdir())
