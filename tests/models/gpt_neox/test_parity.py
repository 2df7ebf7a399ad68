from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests


@pytest.fixture(scope="module", params=["gpt_neox", "gpt_neox_in_turn"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestGPTNeoX(ParityTests):
    pass
