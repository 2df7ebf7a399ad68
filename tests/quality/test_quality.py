"""The figures of a quality report, and the texts that they are about."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from app.quality import texts
from app.quality.measure import Score


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
