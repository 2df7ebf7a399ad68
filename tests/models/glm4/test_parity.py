from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests
from tests.models.served import InterpretedTests, ServedTests


@pytest.fixture(scope="module", params=["glm4", "glm"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestGlm4(ParityTests, ServedTests):
    pass


class TestInterpreted(InterpretedTests):
    VARIANT = "glm4"
