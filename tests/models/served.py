"""What every family's tests ask of a served model: transformers' tokens, however and by whatever they are computed.

A family's test module has a fixture ``loaded``, a :class:`~tests.models.parity.Loaded`, and a class of these tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.kernels import dispatch
from app.kernels.collective import ONE_RANK
from app.runner.start import load_runner
from tests.integration.test_replay import Ran, requests, steps
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.parity import Loaded
from tests.models.scheduled import TOKENS, gives_transformers_tokens
from tests.models.test_dispatch_contract import row, strays_of
from tests.runner.driver import Request, discard, engine_config, run, runner_of
from tests.runner.steps import slot_of, step_of

native = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels")
SMALL_STEPS: dict[str, Any] = {
    "max_num_batched_tokens": 6,
    "max_logit_rows": 6,
    "max_num_seqs": 2,
    "max_model_len": 32,
}
"""The interpreter takes its time for every row and token."""


class _Restoring:
    """Tests that choose a backend."""

    @pytest.fixture(autouse=True)
    def restored(self) -> Iterator[None]:
        yield
        dispatch.configure(dispatch.Mode.AUTO, 1)


class ServedTests(_Restoring):
    """Of one family."""

    INT8 = 0.02
    """How far log-probabilities of int8 may be: the mean squared difference relative to their variance."""

    def test_tokens_are_transformers_however_they_are_scheduled(self, loaded: Loaded) -> None:
        slides = all(attention.window is not None for attention in loaded.config.attentions)
        gives_transformers_tokens(loaded.reference, loaded.directory, short=6 if slides else 9)

    @native
    def test_an_int8_step_is_one_native_call(self, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        ran = Ran(monkeypatch)
        runner = runner_of(loaded.directory, kernels="strict", threads=2, quantization="int8")
        ran.take()
        replayed, programs = steps(runner, requests()), ran.take()
        assert all(result.replayed for result in replayed)
        assert len([names for names in programs if names != ["logprobs"]]) == len(replayed), "one call a step"
        runner.run_eagerly()
        eager = steps(runner, requests())
        assert [result.rows for result in replayed] == [result.rows for result in eager]

    @native
    def test_int8_is_near(self, loaded: Loaded) -> None:
        served = served_logprobs(runner_of(loaded.directory, kernels="strict", quantization="int8"))
        expected = expected_logprobs(loaded.directory)
        assert ((served - expected).square().mean() / expected.var()).item() < self.INT8

    def test_steps_compute_in_kernels_alone(self, loaded: Loaded) -> None:
        runner, prompt = runner_of(loaded.directory), list(range(40))
        first = step_of([row(runner, 0, 0, prompt, blocks=range(3))], [slot_of(0, prompt)])
        assert strays_of(lambda: runner.submit(first)) == set()
        assert strays_of(lambda: runner.submit(step_of([row(runner, 0, 40, [7])]))) == set()


@pytest.mark.slow
class InterpretedTests(_Restoring):
    """Whole steps of one family, of which one variant will do: Triton's interpreter takes its time.

    Each kernel by itself is interpreted in ``tests/kernels``, whole steps of each kind in ``tests/integration``.
    """

    VARIANT: str
    """Of two layers here."""

    def test_interpreted_triton_gives_the_tokens_of_the_reference(self, tmp_path: Path) -> None:
        pytest.importorskip("triton", reason="Triton has no wheel for this machine")
        directory = checkpoint(tmp_path, self.VARIANT, num_hidden_layers=2)
        config = engine_config(directory, kernels="interpret", quantization="int8", **SMALL_STEPS)
        runner = load_runner(config, discard, ONE_RANK)  # the warm-up would be a step more
        computed, expected = ([Request(0, [7], [0]), Request(1, TOKENS[:4], [5])] for _ in range(2))
        run(runner, computed, 2)
        dispatch.configure(dispatch.Mode.REFERENCE, threads=1)
        runner.run_eagerly()
        run(runner, expected, 2)
        assert [request.outputs for request in computed] == [request.outputs for request in expected]
