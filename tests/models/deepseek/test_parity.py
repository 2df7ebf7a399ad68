from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests


@pytest.fixture(scope="module", params=["deepseek_v2", "deepseek_v2_low", "deepseek_v3", "deepseek_v3_halves"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestDeepseek(ParityTests):
    pass
