"""``route``: the specification and the native form, on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError
from app.kernels.native.library import ISAS, NativeError, best_isa
from app.kernels.native.program import Program
from app.kernels.route import Scoring, route
from app.kernels.types import Routing
from tests.kernels.mixture import empty_routing
from tests.kernels.util import randn, relative_error


def _forms() -> list[str]:
    try:
        return ["reference", *ISAS[ISAS.index(best_isa()) :]]
    except NativeError:
        return ["reference"]


@pytest.fixture(params=_forms(), autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "reference":
        dispatch.configure(dispatch.Mode.REFERENCE, 1)
    else:
        dispatch.configure(dispatch.Mode.STRICT, 2, isa=request.param)
    yield request.param
    dispatch.configure(dispatch.Mode.AUTO, 1)


def run(logits: Tensor, chosen: int, scoring: Scoring = Scoring.SOFTMAX, *, normalise: bool = False) -> Routing:
    tokens, count = logits.shape
    routing = empty_routing(tokens, count, chosen)
    route(logits, routing, scoring=scoring, normalise=normalise)
    return routing


def weights64(logits: Tensor, experts: Tensor, scoring: Scoring, *, normalise: bool) -> Tensor:
    wide = logits.double()
    of_chosen = wide.gather(1, experts.long())
    if scoring is Scoring.SIGMOID:
        weights = 1 / (1 + (-of_chosen).exp())
    elif scoring is Scoring.SOFTMAX:
        weights = of_chosen.exp() / wide.exp().sum(dim=1, keepdim=True)
    else:
        weights = of_chosen.exp() / of_chosen.exp().sum(dim=1, keepdim=True)
    return weights / weights.sum(dim=1, keepdim=True) if normalise else weights


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("scoring", list(Scoring))
@pytest.mark.parametrize(
    ("tokens", "experts", "chosen"), [(1, 128, 8), (9, 8, 2), (63, 60, 4), (3, 5, 5), (17, 1, 1), (200, 1000, 33)]
)
def test_weights_and_order(scoring: Scoring, normalise: bool, tokens: int, experts: int, chosen: int) -> None:
    logits = 3 * randn(tokens, experts)
    routing = run(logits, chosen, scoring, normalise=normalise)
    assert routing.experts.equal(logits.topk(chosen).indices.to(torch.int32))
    expected = weights64(logits, routing.experts, scoring, normalise=normalise)
    assert relative_error(routing.weights, expected) < 1e-6


@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(1, 128, 8), (9, 8, 2), (300, 60, 4), (3, 5, 5)])
def test_slots_lie_by_expert_in_order(tokens: int, experts: int, chosen: int) -> None:
    routing = run(randn(tokens, experts), chosen)
    flat = routing.experts.view(-1).tolist()
    assert routing.slots.tolist() == sorted(range(tokens * chosen), key=lambda slot: (flat[slot], slot))
    assert routing.offsets.tolist() == [sum(e < expert for e in flat) for expert in range(experts + 1)]


def test_of_equal_logits_the_first_wins() -> None:
    logits = torch.tensor([[0.0, 2.0, -0.0, 2.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert run(logits, 5).experts.tolist() == [[1, 3, 5, 0, 2], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("scoring", list(Scoring))
def test_a_nan_stays_in_its_row(scoring: Scoring) -> None:
    logits = randn(3, 7)
    logits[1, 4] = float("nan")
    routing = run(logits, 3, scoring, normalise=True)
    assert routing.experts[1, 0] == 4
    assert routing.weights.isnan().all(dim=1).tolist() == [False, True, False]
    assert routing.weights.isnan().any(dim=1).tolist() == [False, True, False]
    assert (routing.experts[1].sort().values.diff() > 0).all()


def test_infinite_logits_choose_within_bounds() -> None:
    logits = torch.tensor([[float("-inf")] * 4, [0.0, float("-inf"), float("-inf"), float("-inf")]])
    routing = run(logits, 2)
    assert routing.experts.tolist() == [[0, 1], [0, 1]]
    assert routing.weights[1].tolist() == [1.0, 0.0]


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = randn(40, 60)
    whole = run(logits, 4)
    for start, stop in [(0, 1), (7, 9), (3, 40)]:
        part = run(logits[start:stop].clone(), 4)
        assert part.experts.equal(whole.experts[start:stop])
        assert part.weights.equal(whole.weights[start:stop])


def test_a_recording_reads_its_size_from_the_step(form: str) -> None:
    logits, routing = randn(20, 12), empty_routing(20, 12, 3)
    if form == "reference":
        with dispatch.recording(), pytest.raises(FallbackError):
            route(logits, routing, scoring=Scoring.SOFTMAX, normalise=True)
        return
    with dispatch.recording() as calls:
        route(logits, routing, scoring=Scoring.SOFTMAX, normalise=True)
    program = Program(dispatch.pool(), calls, dispatch.isa())
    for tokens in (20, 0, 1, 9):
        program.run(tokens=tokens)
        if tokens == 0:
            continue
        eager = run(logits[:tokens].clone(), 3, normalise=True)
        assert routing.experts[:tokens].equal(eager.experts)
        assert routing.weights[:tokens].equal(eager.weights)
        assert routing.slots[: 3 * tokens].equal(eager.slots)
        assert routing.offsets.equal(eager.offsets)


def test_refuses_what_does_not_fit() -> None:
    for experts, chosen in [(4, 5), (4, 0), (1025, 2)]:
        with pytest.raises(ValueError, match="route: cannot choose"):
            route(randn(2, experts), empty_routing(2, experts, chosen), scoring=Scoring.SOFTMAX, normalise=True)
    with pytest.raises(ValueError, match=r"routing.experts has shape \[3, 2\]"):
        route(randn(2, 4), empty_routing(3, 4, 2), scoring=Scoring.SOFTMAX, normalise=True)
    with pytest.raises(ValueError, match=r"logits is torch.bfloat16"):
        route(randn(2, 4).bfloat16(), empty_routing(2, 4, 2), scoring=Scoring.SOFTMAX, normalise=True)
