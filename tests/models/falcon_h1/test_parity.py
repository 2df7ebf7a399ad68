from __future__ import annotations

from pathlib import Path

import pytest

from app.quality.quantize import write
from app.store.files import find_weights, read_model
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.expert_files import are_near
from tests.models.gguf_model import VOCAB_SIZE
from tests.models.parity import Loaded, ParityTests
from tests.models.scheduled import gives_transformers_tokens
from tests.models.served import InterpretedTests, ServedTests
from tests.models.tiny import make_reference, save
from tests.runner.driver import runner_of
from tests.store.tiny import write_tokenizer


@pytest.fixture(scope="module", params=["falcon_h1", "falcon_h1_normed"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestFalconH1(ParityTests, ServedTests):
    def test_tokens_are_transformers_however_they_are_scheduled(self, loaded: Loaded) -> None:
        """As of all families, but for two groups of blocks."""
        gives_transformers_tokens(loaded.reference, loaded.directory, short=(9, 12))


def test_an_int8_checkpoint_is_near(tmp_path: Path) -> None:
    """Its scales are those of the checkpoint's rows, ahead of the factors."""
    source = save(make_reference("falcon_h1", vocab_size=VOCAB_SIZE), tmp_path / "model")
    write_tokenizer(source / "tokenizer.json")
    write(read_model("model", source, find_weights(source)), tmp_path / "int8")
    are_near(served_logprobs(runner_of(tmp_path / "int8")), expected_logprobs(source))


class TestFalconH1Interpreted(InterpretedTests):
    VARIANT = "falcon_h1"
