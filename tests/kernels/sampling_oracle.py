"""Sampling as its definition reads, one row at a time, in plain Python numbers: what the kernel is held against."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

MASK = 0xFFFFFFFF


@dataclass
class Row:
    """One row's arguments."""

    seed: int = 0
    position: int = 0
    sample_index: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    banned: list[int] = field(default_factory=list)
    """Stop tokens of a row below min_tokens."""
    bias: dict[int, float] = field(default_factory=dict)
    allowed: set[int] | None = None


def philox(counter: list[int], key: list[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK, (a >> 32) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def gumbel(row: Row, token: int) -> float:
    words = philox([token // 4, row.position, row.sample_index, 0], [row.seed & MASK, row.seed >> 32 & MASK])
    return -math.log(-math.log1p(-(words[token % 4] + 0.5) * 2.0**-32))


def penalised(logits: list[float], row: Row) -> list[float]:
    """Everything before the temperature."""
    out = list(logits)
    counts = Counter(row.output)
    for v in range(len(out)):
        if (row.allowed is not None and v not in row.allowed) or v in row.banned:
            out[v] = -math.inf
        out[v] += row.bias.get(v, 0.0)
        if v in counts or v in row.prompt:
            out[v] = out[v] / row.repetition if out[v] > 0 else out[v] * row.repetition
        out[v] -= row.frequency * counts[v] + row.presence * (counts[v] > 0)
    return out


def kept(logits: list[float], row: Row) -> set[int]:
    """The tokens that may be sampled, from the penalised logits."""
    peak = max(logits)
    weights = {v: math.exp((x - peak) / row.temperature) for v, x in enumerate(logits)}
    order = sorted(weights, key=lambda v: -weights[v])
    if row.top_k:
        order = order[: row.top_k]
    total, mass = math.fsum(weights[v] for v in order), 0.0
    nucleus: list[int] = []
    for v in order:
        if row.top_p < 1 and mass >= row.top_p * total and nucleus:
            break
        nucleus.append(v)
        mass += weights[v]
    return {v for v in nucleus if weights[v] >= row.min_p * weights[order[0]] and weights[v] > 0}


def token(logits: list[float], row: Row) -> int:
    """The sampled token."""
    logits = penalised(logits, row)
    if row.temperature == 0:
        return logits.index(max(logits))
    noisy = {v: logits[v] / row.temperature + gumbel(row, v) for v in kept(logits, row)}
    return max(noisy, key=lambda v: noisy[v])
