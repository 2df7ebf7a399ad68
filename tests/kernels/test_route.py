"""``route``: the specification and the native form, on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config, Ernie4_5_MoeConfig, Lfm2MoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeTopKRouter

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError
from app.kernels.native.library import ISAS, NativeError, best_isa
from app.kernels.native.program import Program
from app.kernels.route import Groups, RoutingRule, Scoring, route
from app.kernels.types import Routing
from tests.kernels.mixture import RULES, bias_of, empty_routing
from tests.kernels.util import poisoned, randn, relative_error


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
    route(logits, routing, RoutingRule(scoring=scoring, normalise=normalise))
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


def scores64(logits: Tensor, scoring: Scoring) -> Tensor:
    if scoring is Scoring.SIGMOID:
        return 1 / (1 + (-logits.double()).exp())
    return logits.double().softmax(-1) if scoring is Scoring.SOFTMAX else logits.double()


def choice64(logits: Tensor, chosen: int, rule: RoutingRule, bias: Tensor | None) -> list[list[int]]:
    """Row by row, as it is said in words."""
    values = scores64(logits, rule.scoring) + (0 if bias is None else bias.double())
    groups = rule.groups or Groups(count=1, chosen=1)
    size, found = values.shape[1] // groups.count, []
    for row in values.tolist():
        worth = [sum(sorted(row[g * size : (g + 1) * size])[-groups.best :]) for g in range(groups.count)]
        best = [g for _, g in sorted((-value, g) for g, value in enumerate(worth))[: groups.chosen]]
        candidates = [(-value, i) for i, value in enumerate(row) if i // size in best]
        found.append([i for _, i in sorted(candidates)[:chosen]])
    return found


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(1, 256, 8), (9, 8, 2), (33, 160, 6), (40, 24, 5)])
def test_every_rule_says_which_and_how_much(
    rule: RoutingRule, with_bias: bool, tokens: int, experts: int, chosen: int
) -> None:
    logits, routing = 3 * randn(tokens, experts), empty_routing(tokens, experts, chosen)
    bias = bias_of(experts) if with_bias else None
    route(logits, routing, rule, bias_X=bias)
    assert routing.experts.tolist() == choice64(logits, chosen, rule, bias)
    expected = weights64(logits, routing.experts, rule.scoring, normalise=False)
    if rule.normalise:
        expected = expected / (expected.sum(dim=1, keepdim=True).clamp(min=rule.least_sum) + rule.sum_offset)
    assert relative_error(routing.weights, expected * rule.scale) < 1e-6
    assert routing.offsets[-1] == tokens * chosen


@pytest.mark.parametrize("rule", [RoutingRule(normalise=True), RULES[0]])
def test_each_experts_factor_is_on_its_weights(rule: RoutingRule) -> None:
    logits, plain, routing = 3 * randn(9, 24), empty_routing(9, 24, 5), empty_routing(9, 24, 5)
    factor = randn(24, seed=3)
    route(logits, plain, rule)
    route(logits, routing, rule, factor_X=factor)
    assert routing.experts.equal(plain.experts)
    assert relative_error(routing.weights, plain.weights.double() * factor[plain.experts.long()].double()) < 1e-6


def test_logits_may_be_columns_of_a_wider_tensor() -> None:
    wide = poisoned(9, 13)
    wide[:, :12] = randn(9, 12)
    grouped = RoutingRule(normalise=True, groups=Groups(count=3, chosen=2))
    for rule in (RoutingRule(normalise=True), grouped):
        columns, alone = empty_routing(9, 12, 3), empty_routing(9, 12, 3)
        route(wide[:, :12], columns, rule)
        route(wide[:, :12].contiguous(), alone, rule)
        assert columns.experts.equal(alone.experts)
        assert columns.weights.equal(alone.weights)


def by_expert(routing: Routing, count: int) -> Tensor:
    """[T, X]: weights, zeros of experts that were not chosen."""
    weights = torch.zeros(routing.experts.shape[0], count)
    return weights.scatter_(1, routing.experts.long(), routing.weights)


def test_is_the_choice_of_transformers() -> None:
    """Routers whose matrix is the identity, so that they are given logits."""
    shape = {"hidden_size": 32, "n_routed_experts": 32, "num_experts_per_tok": 5, "n_group": 4, "topk_group": 2}
    v3 = DeepseekV3TopkRouter(DeepseekV3Config(**shape, routed_scaling_factor=2.5))
    v2 = DeepseekV2TopkRouter(DeepseekV2Config(**shape, topk_method="group_limited_greedy", routed_scaling_factor=16.0))
    ernie = Ernie4_5_MoeTopKRouter(
        Ernie4_5_MoeConfig(hidden_size=32, moe_num_experts=32, moe_k=5, moe_norm_min=0.2, num_hidden_layers=1)
    )
    bias, logits = bias_of(32), 3 * randn(50, 32)
    v3.e_score_correction_bias.copy_(bias)
    ernie.moe_statics.e_score_correction_bias.data.copy_(bias[None])
    sigmoid = RoutingRule(scoring=Scoring.SIGMOID, normalise=True, scale=2.5, groups=Groups(count=4, chosen=2, best=2))
    limited = RoutingRule(normalise=False, scale=16.0, groups=Groups(count=4, chosen=2))
    floored = RoutingRule(normalise=True, least_sum=0.2)
    for router, rule, by in ((v3, sigmoid, bias), (v2, limited, None), (ernie, floored, bias)):
        router.weight.data.copy_(torch.eye(32))
        with torch.no_grad():
            _, weights, experts = router(logits)
        routing = empty_routing(50, 32, 5)
        route(logits, routing, rule, bias_X=by)
        expected = torch.zeros(50, 32).scatter_(1, experts, weights)
        torch.testing.assert_close(by_expert(routing, 32), expected, rtol=1e-5, atol=1e-6)


def test_is_the_choice_of_transformers_where_the_sum_is_small() -> None:
    """So small that what is added to it counts."""
    router = Lfm2MoeTopKRouter(Lfm2MoeConfig(hidden_size=32, num_experts=32, num_experts_per_tok=5))
    router.weight.data.copy_(torch.eye(32))
    logits, bias = 3 * randn(50, 32) - 14, 1e-4 * bias_of(32)
    with torch.no_grad():
        _, weights, experts = router(logits, bias)
    routing = empty_routing(50, 32, 5)
    route(logits, routing, RoutingRule(scoring=Scoring.SIGMOID, normalise=True, sum_offset=1e-6), bias_X=bias)
    expected = torch.zeros(50, 32).scatter_(1, experts, weights)
    torch.testing.assert_close(by_expert(routing, 32), expected, rtol=1e-5, atol=1e-6)
    assert (weights.sum(dim=1) < 0.99).any()


@pytest.mark.parametrize("scoring", list(Scoring))
def test_a_nan_stays_in_its_row_in_groups(scoring: Scoring) -> None:
    logits, routing = randn(3, 12), empty_routing(3, 12, 3)
    logits[1, 4] = float("nan")
    rule = RoutingRule(scoring=scoring, normalise=True, groups=Groups(count=4, chosen=2, best=2))
    route(logits, routing, rule, bias_X=bias_of(12))
    assert routing.weights.isnan().all(dim=1).tolist() == [False, True, False]
    assert routing.weights.isnan().any(dim=1).tolist() == [False, True, False]
    assert (routing.experts[1].sort().values.diff() > 0).all()


def test_of_equal_groups_and_equal_experts_the_first_win() -> None:
    rule, routing = RoutingRule(normalise=False, groups=Groups(count=4, chosen=2)), empty_routing(2, 8, 3)
    route(torch.tensor([[0.0, 1, 2, 0, 2, 0, 0, 2], [1.0] * 8]), routing, rule)
    assert routing.experts.tolist() == [[2, 4, 3], [0, 1, 2]]


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
            route(logits, routing, RoutingRule(normalise=True))
        return
    with dispatch.recording() as calls:
        route(logits, routing, RoutingRule(normalise=True))
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
            route(randn(2, experts), empty_routing(2, experts, chosen), RoutingRule(normalise=True))
    for groups, match in [
        (Groups(count=3, chosen=1), "are not 3 groups"),
        (Groups(count=2, chosen=1, best=3), "judged by their best 3"),
        (Groups(count=4, chosen=1, best=2), "judged by their best 2"),
        (Groups(count=2, chosen=3), "3 of 2 groups"),
        (Groups(count=4, chosen=1), "do not hold 2"),
    ]:
        with pytest.raises(ValueError, match=match):
            route(randn(2, 4), empty_routing(2, 4, 2), RoutingRule(normalise=True, groups=groups))
    with pytest.raises(ValueError, match=r"bias has shape \[3\]"):
        route(randn(2, 4), empty_routing(2, 4, 2), RoutingRule(normalise=True), bias_X=randn(3))
    with pytest.raises(ValueError, match=r"factor is torch\.bfloat16"):
        route(randn(2, 4), empty_routing(2, 4, 2), RoutingRule(normalise=True), factor_X=randn(4).bfloat16())
    with pytest.raises(ValueError, match=r"routing.experts has shape \[3, 2\]"):
        route(randn(2, 4), empty_routing(3, 4, 2), RoutingRule(normalise=True))
    with pytest.raises(ValueError, match=r"logits is torch.bfloat16"):
        route(randn(2, 4).bfloat16(), empty_routing(2, 4, 2), RoutingRule(normalise=True))
