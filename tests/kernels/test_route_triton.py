"""``route`` in Triton: what the specification chooses and groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.kernels.route import RoutingRule, Scoring, route
from app.kernels.route.reference import route_reference
from app.kernels.types import Routing
from tests.kernels.mixture import RULES, bias_of, empty_routing
from tests.kernels.util import poisoned, randn

pytestmark = pytest.mark.usefixtures("interpreted")


def both(logits: Tensor, chosen: int, scoring: Scoring, *, normalise: bool) -> tuple[Routing, Routing]:
    return by_rule(logits, chosen, RoutingRule(scoring=scoring, normalise=normalise), None)


def by_rule(
    logits: Tensor, chosen: int, rule: RoutingRule, bias: Tensor | None, factor: Tensor | None = None
) -> tuple[Routing, Routing]:
    tokens, count = logits.shape
    triton, reference = (empty_routing(tokens, count, chosen) for _ in range(2))
    route(logits, triton, rule, bias_X=bias, factor_X=factor)
    route_reference(logits, reference, rule, bias, factor)
    return triton, reference


@pytest.mark.parametrize(
    ("scoring", "normalise", "tokens", "experts", "chosen"),
    [
        *((scoring, normalise, 3, 8, 2) for scoring in Scoring for normalise in (False, True)),
        *((scoring, normalise, 3, 5, 5) for scoring in Scoring for normalise in (False, True)),
        (Scoring.SOFTMAX, True, 1, 128, 8),
        (Scoring.SIGMOID, False, 1, 128, 8),
        (Scoring.SOFTMAX_CHOSEN, True, 9, 20, 4),
    ],
)
def test_is_what_the_reference_gives(scoring: Scoring, normalise: bool, tokens: int, experts: int, chosen: int) -> None:
    triton, reference = both(3 * randn(tokens, experts), chosen, scoring, normalise=normalise)
    assert triton.experts.equal(reference.experts)
    torch.testing.assert_close(triton.weights, reference.weights, rtol=1e-5, atol=1e-7)
    assert triton.slots.equal(reference.slots)
    assert triton.offsets.equal(reference.offsets)


@pytest.mark.parametrize(
    ("rule", "with_bias", "tokens", "experts", "chosen"),
    [
        *((rule, i % 2 == 0, 3, 8, 2) for i, rule in enumerate(RULES)),
        *((rule, i % 2 == 1, 4, 24, 5) for i, rule in enumerate(RULES)),
    ],
)
def test_every_rule_is_the_references(
    rule: RoutingRule, with_bias: bool, tokens: int, experts: int, chosen: int
) -> None:
    wide = poisoned(tokens, experts + 1)
    wide[:, :experts] = 3 * randn(tokens, experts)
    triton, reference = by_rule(wide[:, :experts], chosen, rule, bias_of(experts) if with_bias else None)
    assert triton.experts.equal(reference.experts)
    torch.testing.assert_close(triton.weights, reference.weights, rtol=1e-5, atol=1e-7)
    assert triton.slots.equal(reference.slots)


def test_each_experts_factor_is_on_its_weights() -> None:
    triton, reference = by_rule(3 * randn(9, 24), 5, RoutingRule(normalise=True), None, randn(24, seed=3))
    assert triton.experts.equal(reference.experts)
    torch.testing.assert_close(triton.weights, reference.weights, rtol=1e-5, atol=1e-7)


def test_what_is_no_number_is_chosen_first_in_groups_too() -> None:
    logits = randn(3, 8)
    logits[1, 6] = float("nan")
    for rule in RULES:
        triton, reference = by_rule(logits, 3, rule, None)
        assert triton.experts[[0, 2]].equal(reference.experts[[0, 2]])
        assert triton.weights.isnan().all(dim=1).tolist() == [False, True, False]
        assert (triton.experts[1].sort().values.diff() > 0).all()


def test_groups_more_slots_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch_shape(op: str, **_dims: int) -> dict[str, int]:
        return {"num_warps": 4, "num_stages": 1, **({"BLOCK": 32} if op == "group_slots" else {})}

    monkeypatch.setattr("app.kernels.route.triton.launch_shape", launch_shape)
    triton, reference = both(randn(20, 5), 4, Scoring.SOFTMAX, normalise=False)
    assert triton.slots.equal(reference.slots)
    assert triton.offsets.equal(reference.offsets)


def test_equal_logits_and_what_is_no_number() -> None:
    low = float("-inf")
    logits = torch.tensor([[0.0, 2.0, -0.0, 2.0, 0.0], [1.0, float("nan"), 2.0, 3.0, -1.0], [low, 1.0, low, 0.0, low]])
    triton, reference = both(logits, 4, Scoring.SOFTMAX_CHOSEN, normalise=False)
    assert triton.experts[:1].tolist() == [[1, 3, 0, 2]]
    assert triton.experts.equal(reference.experts)
    torch.testing.assert_close(triton.weights, reference.weights, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_no_tokens_are_no_launch() -> None:
    routing = empty_routing(0, 4, 2)
    route(randn(0, 4), routing, RoutingRule(normalise=True))
    assert routing.offsets.eq(99).all()
