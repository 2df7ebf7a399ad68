from __future__ import annotations

import pytest

from tests.models.parity import ATOL, TOKENS, Loaded, ParityTests
from tests.models.tiny import make_reference, reference_logits


@pytest.fixture(scope="module", params=["mistral", "ministral", "mistral_full"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestMistral(ParityTests):
    pass


def test_the_window_bites() -> None:
    windowed = reference_logits(make_reference("mistral"), TOKENS)
    gap = (windowed - reference_logits(make_reference("mistral", sliding_window=None), TOKENS)).abs()
    assert gap[:24].max() < ATOL
    assert gap[24:].max() > 0.01
