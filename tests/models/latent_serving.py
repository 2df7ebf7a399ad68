"""What families whose attention goes over latents ask of a served model: transformers' tokens however they are
scheduled, and in every form of kernels.

A family's ``test_engine.py`` has module fixtures ``reference`` and ``checkpoint``, and a class of these tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from app.kernels import dispatch
from app.kernels.native.program import Program
from tests.kernels.delta import native_isas
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.scheduled import TOKENS, answers, engine_of, gives_transformers_tokens, greedy
from tests.runner.driver import Request, engine_config, run, runner_of
from tests.runner.ranks import run_on_ranks

INT8: dict[str, Any] = {"dtype": "auto", "quantization": "auto", "kernels": "strict"}
PROMPTS = [[*TOKENS[:70], 1, 2], [*TOKENS[:70], 3], TOKENS[100:103], TOKENS[:33]]
native = pytest.mark.skipif(not native_isas(), reason="no native kernels here")


class ServedLatentTests:
    """Of one family."""

    @pytest.fixture(autouse=True)
    def restored(self) -> Iterator[None]:
        yield
        dispatch.configure(dispatch.Mode.AUTO, 1)

    def test_tokens_are_transformers_however_they_are_scheduled(
        self, reference: PreTrainedModel, checkpoint: Path
    ) -> None:
        gives_transformers_tokens(reference, checkpoint, 10)

    @native
    def test_native_kernels_in_fp32_choose_the_same_tokens(self, reference: PreTrainedModel, checkpoint: Path) -> None:
        """Latents of fp32 are native's too; linear layers of fp32 weights are plain torch's."""
        engine = engine_of(checkpoint, kernels="auto", max_num_batched_tokens=48)
        got = answers(engine, PROMPTS, 16)
        assert got == [greedy(reference, prompt, 16, answer) for prompt, answer in zip(PROMPTS, got, strict=True)]

    @native
    @pytest.mark.parametrize("formats", [INT8, {"dtype": "bfloat16", "kernels": "strict"}], ids=["int8", "bfloat16"])
    def test_a_decode_step_is_one_native_call(
        self, checkpoint: Path, formats: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runner = runner_of(checkpoint, threads=2, **formats)
        assert runner.info.kv_cache.dtype == "bfloat16"
        requests = [Request(slot, prompt, list(range(8 * slot, 8 * slot + 8))) for slot, prompt in enumerate(PROMPTS)]
        run(runner, requests, 1, chunk=30)
        calls = 0
        original = Program.run

        def counted(self: Program, **fields: Any) -> None:
            nonlocal calls
            calls += 1
            original(self, **fields)

        monkeypatch.setattr(Program, "run", counted)
        run(runner, requests, 9)
        assert calls == 8
        recorded = [request.outputs for request in requests]
        runner = runner_of(checkpoint, threads=2, enforce_eager=True, **formats)
        requests = [Request(slot, prompt, list(range(8 * slot, 8 * slot + 8))) for slot, prompt in enumerate(PROMPTS)]
        run(runner, requests, 9, chunk=17)
        assert [request.outputs for request in requests] == recorded, "op by op, in other chunks"

    @native
    @pytest.mark.parametrize("formats", [INT8, {"dtype": "bfloat16", "kernels": "strict"}], ids=["int8", "bfloat16"])
    def test_rounded_formats_are_near(self, checkpoint: Path, formats: dict[str, Any]) -> None:
        expected = expected_logprobs(checkpoint)
        error = served_logprobs(runner_of(checkpoint, **formats)) - expected
        assert error.square().mean() < 0.02 * expected.var()

    def test_ranks_share_the_heads_and_keep_all_latents(self, checkpoint: Path, tmp_path: Path) -> None:
        config = engine_config(checkpoint, tensor_parallel_size=2)
        for logprobs in run_on_ranks(config, tmp_path / "meeting", served_logprobs):
            torch.testing.assert_close(logprobs, expected_logprobs(checkpoint), rtol=0, atol=1e-4)
