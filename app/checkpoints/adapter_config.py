"""What a PEFT adapter's ``adapter_config.json`` says (torch-free). What would change the numbers and is not served is
refused by name."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

N = TypeVar("N", int, float)

CONFIG_NAME = "adapter_config.json"
_MAX_BYTES = 1 << 20
_MAX_PATTERNS = 4096
_MAX_PATTERN = 256
_MAX_REPEATS = 3
"""Repetitions within a pattern: what it costs to match grows with their power."""
_NOT_LORA = {"use_dora": "DoRA", "use_qalora": "QALoRA", "lora_bias": "a bias of its own", "use_bdlora": "BD-LoRA"}
_LISTS = {
    "modules_to_save": "modules trained in full",
    "target_parameters": "adapters of experts' parameters",
    "layer_replication": "layers that stand twice",
    "trainable_token_indices": "trained embeddings",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "corda_config": "weights changed by CorDA",
}
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that change the base's weights as well, unless the adapter was converted when it was saved."""


class AdapterConfigError(ValueError):
    """An adapter's configuration that cannot be served; one line that names the file and the field."""


class _Fields(msgspec.Struct, frozen=True):
    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: list[str] | str | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True


class AdapterConfig:
    """Ranks and scales of an adapter's modules."""

    def __init__(self, fields: _Fields) -> None:
        self._fields = fields

    @classmethod
    def read(cls, directory: Path) -> AdapterConfig:
        """Reads the configuration of an adapter's directory.

        Raises:
            AdapterConfigError: it is missing, malformed, or asks for what is not served.
        """
        path = directory / CONFIG_NAME
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise AdapterConfigError(f"{path}: {error.strerror or error}") from None
        try:
            if len(data) > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES} bytes")
            raw = json.loads(data)
            if not isinstance(raw, dict):
                raise ValueError("not a JSON object")
            fields = msgspec.convert(raw, _Fields)
            _check(raw, fields)
        except (ValueError, RecursionError) as error:
            raise AdapterConfigError(f"{path}: {error}") from None
        return cls(fields)

    def rank(self, module: str) -> int:
        """Rank of a module's matrices."""
        return _of_pattern(self._fields.rank_pattern, module, self._fields.r)

    def scale(self, module: str) -> float:
        """Factor on what a module's matrices add."""
        alpha, rank = _of_pattern(self._fields.alpha_pattern, module, self._fields.lora_alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self._fields.use_rslora else alpha / rank


def _check(raw: dict[str, Any], fields: _Fields) -> None:
    if fields.peft_type.upper() != "LORA":
        raise ValueError(f"peft_type is {fields.peft_type[:64]!r}; adapters of type 'LORA' are served")
    for name, what in _NOT_LORA.items():
        if raw.get(name):
            raise ValueError(f"{name}: {what} is not served")
    for name, what in _LISTS.items():
        if raw.get(name):
            raise ValueError(f"{name}: {what} are not served")
    if fields.bias != "none":
        raise ValueError(f"bias is {fields.bias[:64]!r}: trained biases are not served")
    started = fields.init_lora_weights
    if isinstance(started, str) and started.lower().startswith(_CHANGES_BASE):
        raise ValueError(
            f"init_lora_weights is {started[:64]!r}, which changes the base's weights too: save it with "
            "path_initial_model_for_weight_conversion"
        )
    if not 1 <= fields.r <= 1 << 16:
        raise ValueError(f"r is {fields.r}, no rank")
    if not math.isfinite(fields.lora_alpha):
        raise ValueError("lora_alpha is not finite")
    for name, patterns in (("rank_pattern", fields.rank_pattern), ("alpha_pattern", fields.alpha_pattern)):
        _check_patterns(name, patterns or {})
    if any(rank < 1 for rank in (fields.rank_pattern or {}).values()):
        raise ValueError("rank_pattern: a rank is at least 1")
    if not all(math.isfinite(alpha) for alpha in (fields.alpha_pattern or {}).values()):
        raise ValueError("alpha_pattern: an alpha is not finite")


def _check_patterns(name: str, patterns: dict[str, Any]) -> None:
    """Checks that patterns are few, and of those that cost little to match."""
    if len(patterns) > _MAX_PATTERNS:
        raise ValueError(f"{name}: {len(patterns)} patterns, up to {_MAX_PATTERNS} are read")
    for pattern in patterns:
        repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
        if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{]|\\\d|\(\?", pattern):
            raise ValueError(f"{name}: {pattern[:64]!r} is too involved a pattern")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: {pattern[:64]!r} is no pattern: {error}") from None


def _of_pattern(patterns: dict[str, N] | None, module: str, default: N) -> N:
    """The value of the first pattern that is a module's name or the end of it, whole names between dots."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
