from __future__ import annotations

import pytest

from tests.models.expert_files import ROUNDED_BFLOAT16, ROUNDED_INT8
from tests.models.parity import Loaded, ParityTests
from tests.models.scheduled import gives_transformers_tokens
from tests.models.served import InterpretedTests, ServedTests


@pytest.fixture(scope="module", params=["granitemoehybrid", "granitemoehybrid_groups"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestGranite4(ParityTests, ServedTests):
    BFLOAT16, INT8 = ROUNDED_BFLOAT16, ROUNDED_INT8

    def test_tokens_are_transformers_however_they_are_scheduled(self, loaded: Loaded) -> None:
        """As of all families, but for two groups of blocks."""
        gives_transformers_tokens(loaded.reference, loaded.directory, short=(9, 12))


class TestGranite4Interpreted(InterpretedTests):
    VARIANT = "granitemoehybrid"
