from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests
from tests.models.served import InterpretedTests, ServedTests


@pytest.fixture(scope="module", params=["ernie4_5", "ernie4_5_biases"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestErnie45(ParityTests, ServedTests):
    pass


class TestInterpreted(InterpretedTests):
    VARIANT = "ernie4_5"
