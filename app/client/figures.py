"""What a server's metrics page says of its load, model by model, under the names that many servers export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from app.client.target import TargetError

_RUNNING, _WAITING = ("vllm:num_requests_running",), ("vllm:num_requests_waiting",)
_KV = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
# Before what is counted when a request ends, what is counted step by step.
_PROMPT = ("tuili_engine_prompt_tokens_total", "vllm:prompt_tokens_total")
_GENERATED = ("tuili_engine_generation_tokens_total", "vllm:generation_tokens_total")
_LOOKED_UP, _FOUND = ("vllm:prefix_cache_queries_total",), ("vllm:prefix_cache_hits_total",)
_KNOWN = frozenset((*_RUNNING, *_WAITING, *_KV, *_PROMPT, *_GENERATED, *_LOOKED_UP, *_FOUND))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One model at one time; counters count from the server's start."""

    running: float
    waiting: float
    kv_usage: float
    """Share of the KV cache in use, 0 to 1."""
    prompt_tokens: float
    generated_tokens: float
    looked_up_tokens: float
    """Prompt tokens looked up in the prefix cache."""
    found_tokens: float
    """Those of them that it held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One model over a time."""

    running: float
    waiting: float
    kv_usage: float
    prompt_rate: float
    """Prompt tokens computed a second."""
    generated_rate: float
    hit_ratio: float | None
    """Share of prompt tokens that the prefix cache held; None when none was looked up."""


def read_figures(page: str) -> dict[str, Figures]:
    """The figures on a metrics page, by model.

    Raises:
        TargetError: the page is of another kind, or of a server without such figures.
    """
    found: dict[str, dict[str, float]] = {}
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name in _KNOWN:
                    of_model = found.setdefault(sample.labels.get("model_name", ""), {})
                    of_model[sample.name] = of_model.get(sample.name, 0.0) + sample.value
    except ValueError:
        raise TargetError("what /metrics answers is no page of metrics") from None
    if not found:
        raise TargetError("/metrics has none of the figures that are shown")
    return {model: _figures(values) for model, values in found.items()}


def load_between(before: Figures, after: Figures, seconds: float) -> Load:
    """What happened between two readings. A server that started anew between them counts from 0."""

    def grown(earlier: float, later: float) -> float:
        return later - earlier if later >= earlier else later

    looked_up = grown(before.looked_up_tokens, after.looked_up_tokens)
    return Load(
        running=after.running,
        waiting=after.waiting,
        kv_usage=after.kv_usage,
        prompt_rate=grown(before.prompt_tokens, after.prompt_tokens) / seconds,
        generated_rate=grown(before.generated_tokens, after.generated_tokens) / seconds,
        hit_ratio=grown(before.found_tokens, after.found_tokens) / looked_up if looked_up else None,
    )


def _figures(values: Mapping[str, float]) -> Figures:
    def first(names: Iterable[str]) -> float:
        return next((values[name] for name in names if name in values), 0.0)

    return Figures(
        running=first(_RUNNING),
        waiting=first(_WAITING),
        kv_usage=first(_KV),
        prompt_tokens=first(_PROMPT),
        generated_tokens=first(_GENERATED),
        looked_up_tokens=first(_LOOKED_UP),
        found_tokens=first(_FOUND),
    )
