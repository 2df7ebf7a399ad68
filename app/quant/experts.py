"""What the weights of a mixture of experts have beside their matrices."""

from __future__ import annotations

from typing import Final, NamedTuple


class ExpertsBias(NamedTuple):
    """Which products of each expert have a bias here; of ranks that share experts, the first alone has that of down."""

    gate_up: bool = False
    down: bool = False


NO_BIAS: Final = ExpertsBias()
