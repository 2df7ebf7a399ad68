"""Which experts of a mixture each token goes to, what each counts, and the tokens of each expert."""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from app.kernels.check import check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.route.cpu import route_cpu
from app.kernels.route.reference import route_reference
from app.kernels.types import Routing

__all__ = ["MAX_EXPERTS", "Scoring", "route"]

MAX_EXPERTS = 1024


class Scoring(enum.Enum):
    """How the logits of the chosen experts become weights."""

    SOFTMAX = "softmax"
    """Softmax over all experts."""
    SOFTMAX_CHOSEN = "softmax chosen"
    """Softmax over the chosen ones."""
    SIGMOID = "sigmoid"


def route(logits_TX: Tensor, routing: Routing, *, scoring: Scoring, normalise: bool) -> None:
    """Chooses the experts with the largest logits, as many as ``routing`` has room for.

    Of equal logits the lower index comes first; a NaN comes before everything, and makes its token's weights NaN.
    Weights are fp32. Everything has a place of fixed size, whatever is chosen: nothing waits for a GPU.

    Args:
        logits_TX: [T, X] fp32, X at most 1,024.
        routing: to be filled; k of X experts a token.
        normalise: divides a token's weights by their sum.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, experts = logits_TX.shape
    chosen = routing.experts.shape[-1]
    if not 0 < chosen <= experts <= MAX_EXPERTS:
        raise ValueError(f"route: cannot choose {chosen} of {experts} experts (of {MAX_EXPERTS} at most)")
    check_tensor("route", "logits", logits_TX, (tokens, experts), torch.float32)
    check_routing("route", routing, tokens, experts)
    if runs_triton(logits_TX):
        from app.kernels.route.triton import route_triton  # only a GPU needs Triton

        route_triton(logits_TX, routing, scoring.value, normalise)
    elif native("route", logits_TX):
        route_cpu(logits_TX, routing, scoring.value, normalise)
    else:
        route_reference(logits_TX, routing, scoring.value, normalise)


def check_routing(op: str, routing: Routing, tokens: int, experts: int) -> None:
    """Checks the shapes and dtypes of what tells ``tokens`` tokens' experts.

    Raises:
        ValueError: they do not fit.
    """
    chosen = routing.experts.shape[-1]
    check_tensor(op, "routing.experts", routing.experts, (tokens, chosen), torch.int32)
    check_tensor(op, "routing.weights", routing.weights, (tokens, chosen), torch.float32)
    check_tensor(op, "routing.slots", routing.slots, (tokens * chosen,), torch.int32)
    check_tensor(op, "routing.offsets", routing.offsets, (experts + 1,), torch.int32)
