"""Projections that checkpoints keep otherwise than :mod:`app.layers.blocks`: by other names, several in one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.quant.destination import Destination, Interleaved


def rename(named: Mapping[str, Destination], prefix: str, parts: Mapping[str, str]) -> dict[str, Destination]:
    """``named`` with other names for the tensors of some projections.

    Args:
        prefix: of the projections, without a dot behind it.
        parts: a projection -> what the checkpoint calls it.
    """
    renamed = {}
    for name, destination in named.items():
        part, _, kind = name.removeprefix(f"{prefix}.").rpartition(".")
        renamed[f"{prefix}.{parts[part]}.{kind}" if part in parts else name] = destination
    return renamed


def fuse(
    named: Mapping[str, Destination], prefix: str, parts: Sequence[str], into: str, *, groups: int = 1
) -> dict[str, Destination]:
    """``named`` with the tensors of some projections as those of one.

    Args:
        prefix: of the projections, without a dot behind it.
        parts: the projections.
        into: what the checkpoint calls the one.
        groups: as of :class:`~app.quant.destination.Interleaved`.
    """
    rest, fused = dict(named), {}
    for kind in ("weight", "bias"):
        rows = [rest.pop(name) for part in parts if (name := f"{prefix}.{part}.{kind}") in rest]
        if rows:
            fused[f"{prefix}.{into}.{kind}"] = Interleaved(rows, groups)
    return {**fused, **rest}
