from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from app.kernels import dispatch
from tests.models.latent_serving import ServedLatentTests
from tests.models.scheduled import TOKENS, answers, engine_of, greedy
from tests.models.tiny import make_reference, save


@pytest.fixture(scope="module", params=["deepseek_v2", "deepseek_v3"])
def reference(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_reference(request.param)


@pytest.fixture(scope="module")
def checkpoint(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("deepseek"))


class TestDeepseek(ServedLatentTests):
    pass


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("restored")
def test_interpreted_kernels_choose_the_same_tokens(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    reference = make_reference("deepseek_v3", num_hidden_layers=1, first_k_dense_replace=1)
    engine = engine_of(save(reference, tmp_path), kernels="interpret", max_num_batched_tokens=16)
    assert answers(engine, [TOKENS[:18]], 2) == [greedy(reference, TOKENS[:18], 2)]
