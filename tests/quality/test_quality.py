"""The figures of a quality report, and the texts that they are about."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from app.quality import texts
from app.quality.measure import Score
from app.quality.report import FORMATS, compare
from app.store import Store, resolve
from tests.byte_tokenizer import build_byte_tokenizer
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


def test_a_format_that_a_model_cannot_have_is_left_out(tmp_path: Path) -> None:
    reference = make_reference("deepseek_v3", num_hidden_layers=1, first_k_dense_replace=1, vocab_size=300)
    build_byte_tokenizer().save(str(save(reference, tmp_path) / "tokenizer.json"))
    said: list[str] = []
    formats = {name: FORMATS[name] for name in ("float32", "int8", "bfloat16")}
    rows = compare(resolve(str(tmp_path), Store()), formats=formats, max_tokens=9, announce=said.append)
    assert [(row.weights, row.language, row.num_tokens) for row in rows] == [
        (name, language, 8) for name in ("float32", "bfloat16") for language in texts.SHA256
    ]
    (why,) = set(said) - set(formats)
    assert why.startswith("int8 is left out: kv_cache_dtype = 'int8'")
