"""The native samplers against the plain torch ones, on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.dispatch import Mode
from app.kernels.native.library import ISAS, NativeError, best_isa
from app.kernels.native.program import Program
from app.kernels.sample import LogprobsOut, SampleParams, logprobs, record_tokens, sample
from app.kernels.sample.reference import logprobs_reference, sample_reference
from tests.kernels.sampling_oracle import Row
from tests.kernels.test_sample import make_params
from tests.kernels.util import poisoned, randn

T = TypeVar("T")


def isas() -> list[str]:
    try:
        return list(ISAS[ISAS.index(best_isa()) :])
    except NativeError:
        return []


pytestmark = pytest.mark.skipif(not isas(), reason="no native kernels here")


@pytest.fixture(params=[(isa, threads) for isa in isas() for threads in (1, 3)], ids=str, autouse=True)
def native(request: pytest.FixtureRequest) -> Iterator[None]:
    before = (dispatch._state.mode, dispatch._state.threads, dispatch._state.isa)
    isa, threads = request.param
    dispatch.configure(Mode.STRICT, threads, isa=isa)
    yield
    dispatch.configure(*before)


def mixed_rows(vocab_size: int, count: int, seed: int) -> list[Row]:
    """All kinds of row side by side."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices: T) -> T:
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    def tokens() -> list[int]:
        return torch.randint(vocab_size, (pick(0, 5),), generator=generator).tolist()

    return [
        Row(
            seed=seed * 1000 + index,
            position=index * 7,
            sample_index=index % 3,
            temperature=pick(0.0, 0.3, 1.0, 1.0, 2.5),
            top_k=pick(0, 0, 1, 40, 900, vocab_size, vocab_size + 1),
            top_p=pick(1.0, 1.0, 0.95, 0.5, 0.999),
            min_p=pick(0.0, 0.0, 0.05, 0.5),
            repetition=pick(1.0, 1.2),
            presence=pick(0.0, 0.5),
            frequency=pick(0.0, -0.5),
            prompt=tokens(),
            output=tokens(),
            banned=tokens(),
            bias=dict.fromkeys(tokens(), 3.0),
            allowed=pick(None, set(range(0, vocab_size, 3))),
        )
        for index in range(count)
    ]


def both(logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = params.rows.numel()
    out, failed = poisoned(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool)
    sample(logits, params, out, failed)
    expected, expected_failed = torch.empty_like(out), torch.empty_like(failed)
    sample_reference(logits, params, expected, expected_failed)
    return out, failed, expected, expected_failed


@pytest.mark.parametrize("vocab_size", [1, 3, 17, 1000, 1023, 4099, 49152])
def test_tokens_are_those_of_the_reference(vocab_size: int) -> None:
    count = 12 if vocab_size > 10000 else 40
    logits = randn(count, vocab_size, seed=vocab_size) * 4
    out, failed, expected, expected_failed = both(logits, make_params(mixed_rows(vocab_size, count, 5), vocab_size))
    assert failed.tolist() == expected_failed.tolist()
    assert out.tolist() == expected.tolist()


@pytest.mark.parametrize("levels", [1, 3, 20])
def test_ties_are_kept_as_the_reference_keeps_them(levels: int) -> None:
    """Few distinct logits: every cut falls among equals."""
    logits = torch.randint(levels, (40, 999), generator=torch.Generator().manual_seed(levels)).float()
    out, failed, expected, _ = both(logits, make_params(mixed_rows(999, 40, 6), 999))
    assert not failed.any()
    assert out.tolist() == expected.tolist()


def test_many_draws_are_those_of_the_reference() -> None:
    """Sampling from nearly flat logits: whatever the filter before the exact noise wrongly left out would show."""
    rows = [Row(seed=3, position=index, temperature=1.0 + index % 4) for index in range(200)]
    logits = randn(200, 3001, seed=1) * 0.5
    out, _, expected, _ = both(logits, make_params(rows, 3001))
    assert out.tolist() == expected.tolist()


def test_far_logits_are_never_drawn_and_harm_nothing() -> None:
    logits = randn(6, 500)
    logits[:, ::2] = -3e38
    logits[:, 1] = -float("inf")
    rows = [Row(seed=i, top_k=(0, 300, 20)[i % 3], top_p=(1.0, 0.9)[i % 2], temperature=0.01 + i) for i in range(6)]
    out, failed, expected, _ = both(logits, make_params(rows, 500))
    assert not failed.any()
    assert out.tolist() == expected.tolist()


def test_a_recorded_sampler_reads_its_arguments_anew() -> None:
    logits = randn(4, 300) * 3
    params = make_params([Row(seed=i, top_p=0.9) for i in range(4)], 300)
    last, counts = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 300, dtype=torch.int32)
    tokens, failed = poisoned(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    with dispatch.recording() as calls:
        sample(logits, params, tokens, failed)
        record_tokens(tokens, params.slots, last, counts)
    assert tokens.tolist() == [99] * 4
    program = Program(dispatch.pool(), calls, dispatch.isa())
    for step in range(5):
        params.positions.fill_(step)
        expected = torch.empty_like(tokens)
        sample_reference(logits, params, expected, torch.empty_like(failed))
        program.run(samples=4)
        assert tokens.tolist() == expected.tolist()
        assert last[params.slots].tolist() == expected.tolist()
        assert int(counts.sum()) == 4 * (step + 1)
    program.run(samples=2)
    assert int(counts.sum()) == 22


@pytest.mark.parametrize(("vocab_size", "k"), [(5, 5), (63, 20), (49152, 20), (1200, 1024), (1200, 0)])
def test_logprobs_are_those_of_the_reference(vocab_size: int, k: int) -> None:
    logits = (randn(4, vocab_size, seed=k) * 20).round() / 4
    logits[1, 0] = -float("inf")
    rows, tokens = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([1, 0, 2, 4, 3])

    def room() -> LogprobsOut:
        ids = poisoned(5, k, dtype=torch.int64)
        return LogprobsOut(poisoned(5), poisoned(5, dtype=torch.int64), ids, poisoned(5, k))

    out, expected = room(), room()
    logprobs(logits, rows, tokens, out)
    logprobs_reference(logits, rows, tokens, expected)
    assert out.rank.tolist() == expected.rank.tolist()
    assert out.top_ids.tolist() == expected.top_ids.tolist()
    exact = logits.double().log_softmax(-1)[rows]
    assert torch.allclose(out.logprob.double(), exact.gather(1, tokens[:, None]).squeeze(1), rtol=1e-6, atol=1e-6)
    assert torch.allclose(out.top_logprobs.double(), exact.gather(1, out.top_ids), rtol=1e-6, atol=1e-6)


def test_more_alternatives_than_the_native_kernel_lists_are_a_fall_back() -> None:
    out = LogprobsOut(
        poisoned(1), poisoned(1, dtype=torch.int64), poisoned(1, 1025, dtype=torch.int64), poisoned(1, 1025)
    )
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(dispatch.FallbackError, match="1025 alternatives"):
        logprobs(randn(1, 2000), zero, zero, out)
    dispatch.configure(Mode.AUTO, 1)
    logprobs(randn(1, 2000), zero, zero, out)
    assert out.top_ids[0, 0] == randn(1, 2000).argmax()
