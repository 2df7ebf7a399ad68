from __future__ import annotations

import pytest

from tests.models.parity import Loaded, ParityTests


@pytest.fixture(scope="module", params=["llama", "llama_biases", "llama_linear", "llama_llama3", "llama_yarn"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestLlama(ParityTests):
    pass
