"""A model that transformers computes: its weights, and a pass over one sequence's next tokens.

T tokens of a row, L rows of logits, V vocabulary.
"""

from __future__ import annotations

import enum
import inspect
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from app.contract.config import EngineConfig
from app.runner.device import META
from app.runner.errors import RunnerError
from app.runner.foreign.library import ForeignConfig, one_line
from app.runner.memory import bytes_of

_KEPT_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""What families and versions of transformers call that which a model keeps of a sequence, as argument and result."""
_PROBE = (4, 4)
"""Tokens of the rows of the sequence by which a model is measured."""
_MOST_AT_ONCE = 8192
"""Tokens that wait to be read together, at most."""
_SAME = 1e-4
"""Share of the logits' range within which two passes over the same beginning agree."""
_NAMES_SHOWN = 3

_log = logging.getLogger(__name__)


class _Way(enum.Enum):
    """How a model reads what follows tokens that it has read."""

    IN_PIECES = enum.auto()
    """Behind what it keeps, any number of tokens at once."""
    ONE_BY_ONE = enum.auto()
    """Behind what it keeps, one token at a time: some models with recurrent state forget it over more. So a prompt
    waits until its end is there, and is read in one piece, as by transformers' own loop."""
    AGAIN = enum.auto()
    """Sequences are computed from the first token on: the model keeps nothing."""


@dataclass(slots=True)
class Past:
    """What a model keeps of one sequence between steps."""

    num_tokens: int = 0
    """Tokens that it was given."""
    num_computed: int = 0
    """Tokens, of those that it was given, that are in what it keeps."""
    kept: Any = None
    """transformers' cache of them, of whatever class the model makes; None before the first token is computed."""
    token_ids: list[Tensor] = field(default_factory=list)
    """Tokens that are still to be computed: those whose logits nobody wanted yet; all, if a model keeps nothing."""

    def drop(self) -> None:
        """Frees it. The sequence cannot go on."""
        self.num_tokens, self.kept, self.token_ids = -1, None, []


class ForeignModel:
    """Computes sequences one by one.

    Args:
        model: a causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        """
        Raises:
            RunnerError: the model does not run, or its logits depend on tokens that follow.
        """
        self._model = model.eval().requires_grad_(False)
        self.device = torch.device(model.device)
        parameters = inspect.signature(model.forward).parameters
        self._narrows, self._counts = "logits_to_keep" in parameters, "position_ids" in parameters
        self._kept_name: str | None = None
        self._way = _Way.IN_PIECES
        try:
            self.vocab_size, self.bytes_per_token, self.bytes_per_sequence = self._measure()
        except RunnerError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model of theirs raises
            raise RunnerError(f"{type(model).__name__} does not run: {one_line(error)}") from None

    @property
    def num_parameters(self) -> int:
        """Elements of all weights, tied ones once."""
        return sum(weight.numel() for weight in self._model.parameters())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights and of tables that are kept with them, tied ones once."""
        return weight_bytes(self._model)

    @torch.no_grad()
    def read(self, past: Past, token_ids_T: Tensor, wanted: int) -> Tensor:
        """Logits [L, V] fp32 of a sequence's next tokens, of the last ``wanted`` = L of them.

        Args:
            past: of the tokens before; those read are added.
            token_ids_T: [T] int64, at least one.
        """
        past.num_tokens += len(token_ids_T)
        if self._way is _Way.IN_PIECES:
            return self._forward(past, token_ids_T, wanted)
        past.token_ids.append(token_ids_T.clone())
        if not wanted and (self._way is _Way.AGAIN or sum(map(len, past.token_ids)) < _MOST_AT_ONCE):
            return torch.empty(0, self.vocab_size, device=self.device)
        token_ids_T = torch.cat(past.token_ids)
        if self._way is _Way.AGAIN:
            return self._forward(Past(), token_ids_T, wanted)
        past.token_ids.clear()
        if past.kept is None:
            return self._forward(past, token_ids_T, wanted)
        first, tokens = len(token_ids_T) - wanted, torch.split(token_ids_T, 1)
        return torch.cat([self._forward(past, token, int(i >= first)) for i, token in enumerate(tokens)])

    def _forward(self, past: Past, token_ids_T: Tensor, wanted: int) -> Tensor:
        fields: dict[str, Any] = {"logits_to_keep": max(1, wanted)} if self._narrows else {}
        if past.kept is not None and self._kept_name is not None:
            fields[self._kept_name] = past.kept
        end = past.num_computed + len(token_ids_T)
        if self._counts:  # some take them to begin at 0 whatever they keep
            fields["position_ids"] = torch.arange(past.num_computed, end, device=self.device)[None]
        result = self._model(input_ids=token_ids_T[None], use_cache=True, return_dict=True, **fields)
        if self._kept_name is None:
            self._kept_name = next((name for name in _KEPT_NAMES if result.get(name) is not None), None)
        if self._kept_name is not None:
            past.kept, past.num_computed = result[self._kept_name], end
        logits: Tensor = result.logits[0]
        return logits[len(logits) - wanted :].float()

    def _measure(self) -> tuple[int, int, int]:
        """Width of the logits, bytes that a sequence keeps for each token, and those that it keeps whatever its length.

        What is kept grows no faster later on: windows fill up.
        """
        ids = torch.arange(sum(_PROBE), device=self.device)
        width = self._first_pass(ids)
        past, sizes = Past(), [0]
        for piece in torch.split(ids, list(_PROBE)):
            self.read(past, piece, 1)
            sizes.append(bytes_of(past, self.device, ("app.", "transformers.")))
        per_token = max(1, -(-(sizes[-1] - sizes[-2]) // _PROBE[-1]))
        return width, per_token, max(0, sizes[-1] - per_token * sum(_PROBE))

    @torch.no_grad()
    def _first_pass(self, ids: Tensor) -> int:
        """Finds out what the model keeps, and how it goes on from there; returns the width of its logits.

        Raises:
            RunnerError: it keeps nothing, and a token's logits depend on those behind it, as an encoder's do.
        """
        one = self._forward(Past(), ids, len(ids))
        if self._kept_name is not None:
            self._way = _Way.ONE_BY_ONE if getattr(self._model, "_is_stateful", False) else _Way.IN_PIECES
            return one.shape[1]
        self._way = _Way.AGAIN
        two = self._forward(Past(), torch.cat([ids[:-1], ids[:1]]), len(ids))
        if self.device != META and (one - two)[:-1].abs().max() > _SAME * (one.max() - one.min()):
            raise RunnerError(f"{type(self._model).__name__} reads text in both directions: it does not generate")
        return one.shape[1]


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights and of the tables that are kept with them, tied ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def load_model(source: ForeignConfig, config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' model with its weights, on the device.

    Raises:
        RunnerError: weights are missing or of another shape, or transformers cannot load them.
    """
    if config.load_format == "dummy":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return source.build(torch.device("cpu"), dtype).to(device)
    try:
        model, report = source.model_class.from_pretrained(
            source.directory,
            config=source.config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by name below
        )
        model = model.to(device)
    except Exception as error:  # noqa: BLE001 - whatever transformers raises
        raise RunnerError(f"{source.directory}: transformers does not load it: {one_line(error)}") from None
    for fault, what in (("missing_keys", "no weights for"), ("mismatched_keys", "weights of another shape for")):
        if report[fault]:
            raise RunnerError(f"{source.directory}: {what} {_names(report[fault])} of {source.architecture}")
    if report["unexpected_keys"]:
        _log.warning("%s: %s does not use %s", source.directory, source.architecture, _names(report["unexpected_keys"]))
    return model


def _names(keys: Any) -> str:
    names = sorted(key if isinstance(key, str) else key[0] for key in keys)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
