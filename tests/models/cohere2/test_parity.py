from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests


@pytest.fixture(scope="module", params=["cohere", "cohere2"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestCohere2(ParityTests):
    pass
