"""Output head and embedding are one tensor or two as the checkpoint's files say, which transformers follows too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.checkpoints.header import WeightError
from app.checkpoints.int8 import write_int8_checkpoint
from app.checkpoints.tied_head import ties_head
from app.kernels import dispatch
from app.models.names import DecoderNames
from app.runner.loading import read_model_config
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.runner.driver import engine_config, runner_of
from tests.runner.ranks import run_on_ranks

NAMES = DecoderNames()
EMBEDDING, HEAD = NAMES.embedding_weight, NAMES.head_weight
TIED = {"tie_word_embeddings": True}
ATOL = 1e-4


def equal_head(tensors: dict[str, Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def lone_head(tensors: dict[str, Tensor]) -> None:
    del tensors[EMBEDDING]


def served(directory: Path, **options: Any) -> Tensor:
    return served_logprobs(runner_of(directory, **options))


def says_tied(directory: Path) -> bool:
    """What the whole of start-up goes by."""
    return read_model_config(directory, sorted(directory.glob("*.safetensors"))).tie_word_embeddings


@pytest.mark.parametrize(
    ("config", "weights", "tied"),
    [
        (TIED, None, False),
        (TIED, equal_head, True),
        (TIED, lone_head, True),
        ({"tie_word_embeddings": False}, None, False),
        ({"tie_word_embeddings": False}, equal_head, True),
    ],
    ids=["tied_own_head", "tied_equal", "tied_head_alone", "untied", "untied_equal"],
)
def test_the_files_have_the_last_word(tmp_path: Path, config: dict[str, Any], weights: Any, tied: bool) -> None:
    directory = checkpoint(tmp_path, config=config, weights=weights)
    assert says_tied(directory) is tied
    torch.testing.assert_close(served(directory), expected_logprobs(directory), rtol=0, atol=ATOL)


def test_a_head_that_nobody_has_is_an_error(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, weights=lambda tensors: tensors.pop(HEAD))
    with pytest.raises(WeightError, match=r"model\.safetensors: tensor 'lm_head\.weight' missing"):
        runner_of(directory)


def test_a_head_of_another_shape_is_an_error_though_the_config_ties_it(tmp_path: Path) -> None:
    def short(tensors: dict[str, Tensor]) -> None:
        tensors[HEAD] = tensors[EMBEDDING][1:].clone()

    with pytest.raises(
        WeightError, match=r"tensor 'lm_head\.weight' has shape \(127, 64\), the model expects \(128, 64\)"
    ):
        runner_of(checkpoint(tmp_path, config=TIED, weights=short))


def test_equal_in_all_but_the_last_element_is_not_equal(tmp_path: Path) -> None:
    def nearly(tensors: dict[str, Tensor]) -> None:
        equal_head(tensors)
        tensors[HEAD][-1, -1] += 1

    assert says_tied(checkpoint(tmp_path, config=TIED, weights=nearly)) is False


def test_tensors_of_two_files_are_compared(tmp_path: Path) -> None:
    values = torch.randn(1000, 400)  # more than is read at once
    for own, tied in ((values, True), (values + 1, False), (values.half(), False), (values[1:].clone(), False)):
        save_file({EMBEDDING: values}, tmp_path / "a.safetensors")
        save_file({HEAD: own}, tmp_path / "b.safetensors")
        assert ties_head(True, [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], NAMES) is tied


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_scaled_values_mean_nothing_without_their_scales(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.ones(4, 4).to(dtype)
    scales = {f"{EMBEDDING}_scale": torch.ones(4), f"{HEAD}_scale": torch.full((4,), 2.0)}
    save_file({EMBEDDING: values, HEAD: values.clone()} | scales, tmp_path / "a.safetensors")
    assert ties_head(True, [tmp_path / "a.safetensors"], NAMES) is False


def test_the_plan_counts_a_head_of_its_own(tmp_path: Path) -> None:
    sizes = {}
    for name, weights in (("own", None), ("equal", equal_head)):
        runner = runner_of(checkpoint(tmp_path / name, config=TIED, weights=weights))
        sizes[name] = runner.info.weight_bytes
    assert sizes["own"] - sizes["equal"] == 128 * 64 * 4


@pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels")
@pytest.mark.parametrize("options", [{"quantization": "int8"}, {"dtype": "bfloat16"}])
def test_native_formats_and_their_cache_keep_the_two_apart(tmp_path: Path, options: dict[str, Any]) -> None:
    """As a checkpoint that says itself that they are two."""
    honest = served(checkpoint(tmp_path / "honest"), **options)
    directory = checkpoint(tmp_path / "own", config=TIED)
    cached = {**options, "packed_cache": str(tmp_path / "cache")}
    for _ in range(2):  # packed, then from the cache
        assert torch.equal(served(directory, **cached), honest)
    assert len(list((tmp_path / "cache").glob("*.packed"))) == 1


def test_ranks_keep_the_two_apart(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "own", config=TIED)
    config = engine_config(directory, tensor_parallel_size=2)
    expected = expected_logprobs(directory)
    for logprobs in run_on_ranks(config, tmp_path / "meeting", served_logprobs):
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=ATOL)


def test_an_int8_checkpoint_keeps_the_two_apart(tmp_path: Path) -> None:
    directory, converted = checkpoint(tmp_path / "own", config=TIED), tmp_path / "int8"
    converted.mkdir()
    config = json.loads((directory / "config.json").read_text())
    files = [directory / "model.safetensors"]
    write_int8_checkpoint(config, files, converted, progress=lambda _done, _total: None)
    assert says_tied(converted) is False
    stored = load_file(converted / "model.safetensors")
    assert not torch.equal(stored[HEAD], stored[EMBEDDING])
    torch.testing.assert_close(served(converted), expected_logprobs(directory), rtol=0, atol=0.5)
