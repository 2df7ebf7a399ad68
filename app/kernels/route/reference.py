"""Specification of ``route`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.types import Routing


def route_reference(logits_TX: Tensor, routing: Routing, scoring: str, normalise: bool) -> None:
    experts, chosen = logits_TX.shape[1], routing.experts.shape[1]
    # A sort, which is stable: which of equal values torch.topk takes first is not specified.
    logits_TK, order_TK = (part[:, :chosen] for part in logits_TX.sort(dim=-1, descending=True, stable=True))
    routing.experts.copy_(order_TK)
    routing.weights.copy_(_weights(logits_TX, logits_TK, scoring))
    if normalise:
        routing.weights.div_(routing.weights.sum(dim=-1, keepdim=True))
    flat = routing.experts.view(-1).long()
    routing.slots.copy_(flat.sort(stable=True).indices)
    routing.offsets[0] = 0
    routing.offsets[1:] = torch.bincount(flat, minlength=experts).cumsum(0)


def _weights(logits_TX: Tensor, logits_TK: Tensor, scoring: str) -> Tensor:
    if scoring == "sigmoid":
        weights = logits_TK.sigmoid()
    elif scoring == "softmax chosen":
        weights = logits_TK.softmax(dim=-1)
    else:
        weights = (logits_TK - logits_TX.logsumexp(dim=-1, keepdim=True)).exp()
    # A NaN among the chosen is the first of them.
    return torch.where(logits_TK[:, :1].isnan(), torch.nan, weights)
