from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests


@pytest.fixture(scope="module", params=["starcoder2", "starcoder2_sliding"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestStarcoder2(ParityTests):
    pass
