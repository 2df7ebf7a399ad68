from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests
from tests.models.served import ServedTests


@pytest.fixture(scope="module", params=["gemma2", "gemma2_biases"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestGemma2(ParityTests, ServedTests):
    pass
