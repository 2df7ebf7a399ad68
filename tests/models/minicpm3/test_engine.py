from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.models.latent_serving import ServedLatentTests
from tests.models.tiny import make_reference, save


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return make_reference("minicpm3")


@pytest.fixture(scope="module")
def checkpoint(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("minicpm3"))


class TestMiniCPM3(ServedLatentTests):
    pass
