from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests
from tests.models.served import InterpretedTests, ServedTests


@pytest.fixture(scope="module", params=["granite", "granite_biases"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestGranite(ParityTests, ServedTests):
    pass


class TestInterpreted(InterpretedTests):
    VARIANT = "granite_biases"
