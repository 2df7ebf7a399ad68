"""Memory of a model that was never loaded, against what its engine says once it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.contract.info import MemoryNeeds
from app.runner.needs import memory_needs
from app.runner.parallel import start_runner
from app.serve.engine import engine_config
from app.serve.stored_model import StoredModel
from app.serving.engine_client import EngineClient
from app.serving.memory import PROCESS_BYTES
from app.settings import Settings
from app.store import ModelFiles
from app.telemetry.metrics import Metrics
from tests.byte_tokenizer import write_byte_tokenizer
from tests.models.tiny import make_reference, save
from tests.models.tiny_encoder import Reference, served

KV = 8 << 20


def chosen(model: str | Path, **settings: Any) -> Settings:
    return Settings(model=str(model), threads=1, **settings)


def stored(model: str | Path, **settings: Any) -> tuple[StoredModel, Settings]:
    """A model whose files have been found."""
    given = chosen(model, **settings)
    metrics = Metrics("m")
    found = StoredModel(given, EngineClient(metrics), metrics)
    assert found.is_here()
    return found, given


def loaded(settings: Settings, directory: Path, weights: list[Path]) -> MemoryNeeds:
    """What an engine of these settings says once it has loaded the model."""
    info = start_runner(engine_config(settings, directory, weights), lambda _: None).info
    return MemoryNeeds(weights=info.weight_bytes, kv_cache=info.kv_cache_bytes)


CASES: list[tuple[str, dict[str, str]]] = [
    ("llama", {}),
    ("llama", {"dtype": "float32"}),
    ("llama", {"dtype": "bfloat16"}),
    ("qwen3moe", {}),
    ("qwen3_next", {}),
    ("gemma3", {}),
    ("deepseek_v2", {}),
]


@pytest.mark.parametrize(("variant", "formats"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_layers_experts_and_states_are_told_from_shapes(tmp_path: Path, variant: str, formats: dict[str, Any]) -> None:
    directory = save(make_reference(variant), tmp_path)
    settings = chosen(directory, kv_cache_memory=KV, **formats)
    files = sorted(directory.glob("*.safetensors"))
    assert memory_needs(engine_config(settings, directory, files)) == loaded(settings, directory, files)


def test_an_encoder_has_no_pages(tmp_path: Path) -> None:
    directory = Reference().save(tmp_path)
    settings = chosen(directory)
    files = sorted(directory.glob("*.safetensors"))
    with served():
        needs = memory_needs(engine_config(settings, directory, files))
        assert needs == loaded(settings, directory, files)
    assert needs.kv_cache == 0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A whole small model."""
    saved = save(make_reference("llama"), tmp_path)
    write_byte_tokenizer(saved)
    return saved


def test_a_model_is_measured_in_a_process_of_its_own(directory: Path) -> None:
    model, settings = stored(directory, kv_cache_memory=KV)
    real = loaded(settings, directory, sorted(directory.glob("*.safetensors")))
    assert model.needs() == real.weights + real.kv_cache + PROCESS_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("formats", [{}, {"dtype": "bfloat16"}], ids=["auto", "bf16"])
def test_the_default_model_takes_what_was_told(smollm2: ModelFiles, formats: dict[str, str]) -> None:
    model, settings = stored("smollm2-135m", kv_cache_memory=256 << 20, **formats)
    real = loaded(settings, smollm2.directory, list(smollm2.weights))
    assert model.needs() == real.weights + real.kv_cache + PROCESS_BYTES


def test_what_cannot_be_measured_is_guessed_from_its_files(directory: Path) -> None:
    """Its engine will say why it does not start."""
    model, _ = stored(directory, kv_cache_memory=KV, max_model_len=1 << 20)
    assert model.needs() == model.guess()
