"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): the table of angles that the attention kernel reads.

Frequencies are computed in fp32 in the order of operations of the reference implementations: checkpoints were trained
with those roundings, and at position 100,000 one unit in the last place of a frequency is 6e-3 of angle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.layers.config import PositionScale, Rope
from app.layers.rope_scaling import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling


def rope_table(rope: Rope, num_positions: int, device: torch.device) -> Tensor:
    """cos and sin of every position's angles.

    Args:
        num_positions: positions that are used; beyond LongRoPE's original context its long factors make all of them.

    Returns:
        [num_positions, rope.width] fp32, the first half of the columns cosines, the second half sines.
    """
    frequencies, amplitude = _scaled(rope, num_positions)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies[None, :]
    return torch.cat((angles.cos() * amplitude, angles.sin() * amplitude), dim=-1).to(device)


def query_scales(scale: PositionScale, num_positions: int, device: torch.device) -> Tensor:
    """[num_positions] fp32: the factor on the queries of every position."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    return (1 + scale.beta * torch.log(1 + torch.floor(positions / scale.interval))).to(device)


def _scaled(rope: Rope, num_positions: int) -> tuple[Tensor, float]:
    """Frequencies [rope.width / 2] in radians a position, and the factor on cos and sin."""
    head_dim, theta, scaling = rope.width, rope.theta, rope.scaling
    periods = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / (rope.spread or head_dim))
    match scaling:
        case None:
            return 1.0 / periods, 1.0
        case LinearScaling(factor=factor):
            return (1.0 / periods) / factor, 1.0
        case Llama3Scaling():
            return _llama3(1.0 / periods, scaling), 1.0
        case YarnScaling():
            return _yarn(periods, head_dim, theta, scaling), _yarn_amplitude(scaling)
        case LongRopeScaling():
            return _longrope(periods, scaling, num_positions), _longrope_amplitude(scaling)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Frequencies scaled as in Llama 3.1.

    With wavelength w = 2 pi / f and original context c: f / factor for w > c / low, f for w < c / high, and between the
    two (1 - s) f / factor + s f with s = (c / w - low) / (high - low).
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    context = scaling.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    smooth = (context / wavelengths - low) / (high - low)
    ramped = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > context / low, frequencies / scaling.factor, ramped)
    return torch.where(wavelengths < context / high, frequencies, scaled)


def _yarn(periods: Tensor, head_dim: int, theta: float, scaling: YarnScaling) -> Tensor:
    """NTK-by-parts (section 3.2 of the paper): dimensions that turn more than ``beta_fast`` times within the original
    context keep their frequency, those below ``beta_slow`` turns are interpolated, a linear ramp between.
    """

    def dimension_of(turns: float) -> float:
        context = scaling.original_max_position_embeddings
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (scaling.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _yarn_amplitude(scaling: YarnScaling) -> float:
    """Square root of the attention temperature, 0.1 ln(factor) + 1 (section 3.4), or the ratio of two such terms."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)


def _longrope(periods: Tensor, scaling: LongRopeScaling, num_positions: int) -> Tensor:
    """All positions turn by one set of factors, whichever the longest sequence needs."""
    long = num_positions > scaling.original_max_position_embeddings
    factors = scaling.long_factor if long else scaling.short_factor
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * periods)


def _longrope_amplitude(scaling: LongRopeScaling) -> float:
    """The square root of 1 + ln(factor) / ln(original context), of whichever set."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position_embeddings))
