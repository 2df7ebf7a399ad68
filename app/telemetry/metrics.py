"""Every Prometheus collector there is, on a registry of their own.

Each series that dashboards already know under a ``vllm:`` name is recorded once and exported under both names.
Counters never go back: totals of an engine process enter as differences, so a restarted engine adds to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from app.contract.frames import EngineReady, EngineStats, StepRecord
from app.contract.request import FinishReason
from app.telemetry.aliases import ALIASES, Aliases
from app.telemetry.pages import OnePage
from app.telemetry.per_request import REQUEST_SECONDS, TOKEN_SECONDS, PerRequest, RequestFigures
from app.telemetry.tallies import Spread, Tally

_FORMATS = ("dtype", "quantization", "kv_cache_dtype", "kernels", "device")
ENGINE_STATES = ("loading", "ready", "draining", "dead")
M = TypeVar("M", bound=Collector)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The version that every scraper reads. The library's own constant says 1.0.0, which older parsers refuse."""
_PROBES = frozenset({"/livez", "/readyz", "/startupz", "/health", "/ping", "/metrics"})
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
_WAITING_REASONS = ("capacity", "deferred")
_PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_TIER_TOTALS = {
    "hits_total": "Blocks restored from a tier of the prefix cache.",
    "hit_tokens_total": "Prompt tokens found by that.",
    "misses_total": "Blocks looked up in it in vain.",
    "stores_total": "Blocks that it took.",
    "drops_total": "Blocks that it did not take: too many waited, or writing failed.",
    "damaged_total": "Files that were not as they had been written, and are gone.",
}
HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_HOST_SECONDS = (
    0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0,
)  # fmt: skip
_STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """Collectors of the server, and methods that feed them.

    Args:
        model_name: value of the label ``model_name`` on every series but those of HTTP and of the process.
        version: of the program, for ``tuili_build_info``.
        beside: collectors of a model that is served beside, and of HTTP and the process: these are not made again, and
            its page has the series of both.
    """

    def __init__(self, model_name: str, *, version: str = "", beside: Metrics | None = None) -> None:
        self.registry = CollectorRegistry()
        self.model_name = model_name
        self._aliased: list[tuple[str, Collector]] = []
        self._last = EngineStats()
        self._page: list[CollectorRegistry] = [self.registry] if beside is None else beside._page
        if beside is None:
            self._make_process(version)
            self._make_http()
        else:
            self._page.append(self.registry)
        self._make_engine()
        self._make_requests()
        self.registry.register(Aliases(self._aliased))
        self.observe_state("loading")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._alias(name, Counter(name, text, ["model_name", *labels], registry=self.registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._alias(name, Gauge(name, text, ["model_name", *labels], registry=self.registry))

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Spread:
        return self._add(name, Spread(name, text, {"model_name": self.model_name}, buckets))

    def _tally(self, name: str, text: str, **labels: str) -> Tally:
        return self._add(name, Tally(name, text, {"model_name": self.model_name, **labels}))

    def _add(self, name: str, metric: M) -> M:
        self.registry.register(metric)
        return self._alias(name, metric)

    def _alias(self, name: str, metric: M) -> M:
        self._aliased += [(alias, metric) for alias in ALIASES.get(name, ())]
        return metric

    def _make_process(self, version: str) -> None:
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Gauge("tuili_build_info", "Version of the server.", ["version"], registry=self.registry).labels(version).set(1)

    def _make_http(self) -> None:
        self._http_requests = Counter(
            "tuili_http_requests", "HTTP requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self._http_seconds = Histogram(
            "tuili_http_request_seconds",
            "Time from a request's headers to its last byte.",
            ["route", "method"],
            registry=self.registry,
            buckets=REQUEST_SECONDS,
        )
        # What the usual instrumentation of web applications calls them; dashboards ask for these names.
        self._api_requests = Counter(
            "http_requests",
            "HTTP requests answered, but for probes and metrics, by class of status.",
            ["handler", "method", "status"],
            registry=self.registry,
        )
        self._api_seconds = Histogram(
            "http_request_duration_seconds",
            "Time from their headers to their last byte.",
            ["handler", "method"],
            registry=self.registry,
            buckets=REQUEST_SECONDS,
        )

    def _make_engine(self) -> None:
        name = self.model_name
        self._running = self._gauge("tuili_requests_running", "Sequences that are being computed.").labels(name)
        self._waiting = self._gauge("tuili_requests_waiting", "Sequences that wait for their turn.").labels(name)
        self._kv_usage = self._gauge("tuili_kv_cache_usage_ratio", "Share of KV blocks in use, 0 to 1.").labels(name)
        by_reason = self._gauge(
            "tuili_requests_waiting_by_reason",
            "Those that wait for room (capacity), or for something else (deferred: there is nothing yet).",
            "reason",
        )
        self._waiting_for = {reason: by_reason.labels(name, reason) for reason in _WAITING_REASONS}
        self._cache_config = self._gauge(
            "tuili_cache_config_info", "Shape of the KV cache.", "block_size", "num_gpu_blocks", "cache_dtype"
        )
        self._awake = self._gauge(
            "tuili_engine_awake", "1 for awake, while there is an engine: it never sleeps.", "sleep_state"
        )
        self._formats = self._gauge("tuili_engine_info", "Formats and kernels in use.", *_FORMATS)
        self._state = self._gauge("tuili_engine_state", "1 for the engine's present state.", "state")
        self._load_seconds = self._gauge("tuili_engine_load_seconds", "Time the last start took.").labels(name)
        self._restarts = self._counter("tuili_engine_restarts", "Engine processes started after one died.").labels(name)
        self._stalls = self._counter(
            "tuili_engine_stalls", "Engine processes killed because they showed no progress."
        ).labels(name)
        self._steps = self._tally("tuili_engine_steps", "Steps computed.")
        self._steps_by_kind = self._counter(
            "tuili_engine_steps_by_kind",
            "Steps that only decoded, read prompts too, or encoded; replayed as one call, or eager, op by op.",
            "kind",
            "run",
        )
        # By what a record says: encode, decode, replayed.
        self._kinds = {
            (kind == "encode", kind == "decode", run == "replayed"): self._steps_by_kind.labels(name, kind, run)
            for kind in ("decode", "prefill", "encode")
            for run in ("replayed", "eager")
        }
        self._step_tokens = self._histogram("tuili_step_tokens", "Tokens computed in one step.", _STEP_TOKENS)
        self._step_seconds = self._histogram(
            "tuili_step_seconds", "From one step's end to the next one's.", TOKEN_SECONDS
        )
        self._kernel_seconds = self._histogram(
            "tuili_step_kernel_seconds", "Of these, that a step's kernels ran.", TOKEN_SECONDS
        )
        self._host_seconds = self._histogram(
            "tuili_step_host_seconds",
            "The rest of them: to schedule, prepare, collect and send a step.",
            _HOST_SECONDS,
        )
        self._delivery_seconds = self._histogram(
            "tuili_step_delivery_seconds",
            "From a step's frame in the API process to its last chunk handed to a socket.",
            _HOST_SECONDS,
        )
        totals = {
            "prompt_tokens_total": ("tuili_engine_prompt_tokens", "Prompt tokens computed, cached ones excluded."),
            "generation_tokens_total": ("tuili_engine_generation_tokens", "Tokens sampled, wanted by a client or not."),
            "draft_tokens_total": ("tuili_draft_tokens", "Tokens that were guessed and verified."),
            "accepted_draft_tokens_total": ("tuili_accepted_draft_tokens", "Those of them that were right."),
            "forced_tokens_total": ("tuili_forced_tokens", "Tokens that a grammar left no choice about, not sampled."),
            "mask_seconds_total": ("tuili_mask_seconds", "Seconds that making masks took, beside the kernels."),
            "grammars_compiled_total": ("tuili_grammars_compiled", "Grammars compiled, those in the cache excluded."),
            "compile_seconds_total": ("tuili_grammar_compile_seconds", "Seconds that compiling them took."),
            "encode_tokens_total": ("tuili_engine_encode_tokens", "Tokens of sequences that were encoded."),
            "preemptions_total": ("tuili_preemptions", "Sequences that had to give their KV blocks back."),
            "prefix_query_tokens_total": ("tuili_prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
            "prefix_hit_tokens_total": ("tuili_prefix_cache_hits", "Prompt tokens found in the prefix cache."),
        }
        self._totals = {field: self._tally(*texts) for field, texts in totals.items()}
        self._tier_totals = {
            field: self._counter(f"tuili_prefix_tier_{field.removesuffix('_total')}", text, "tier")
            for field, text in _TIER_TOTALS.items()
        }
        self._tier_bytes = self._gauge(
            "tuili_prefix_tier_bytes", "Bytes that a tier of the prefix cache holds.", "tier"
        )

    def _make_requests(self) -> None:
        name = self.model_name
        self._requests = self._counter(
            "tuili_requests", "Requests that ended, by outcome: ok, aborted or an error code.", "endpoint", "outcome"
        )
        self._refusals = self._counter("tuili_requests_refused", "Requests refused at admission.", "endpoint", "reason")
        self._success = self._counter("tuili_request_success", "Choices that ended, by reason.", "finished_reason")
        for reason in FinishReason:
            self._success.labels(name, reason.value)
        self._prompt = self._counter("tuili_prompt_tokens", "Prompt tokens of ended requests.").labels(name)
        self._cached = self._counter("tuili_cached_tokens", "Those of them that the prefix cache held.").labels(name)
        self._generated = self._tally(
            "tuili_generated_tokens", "Tokens received from the engine, those past a stop match included."
        )
        self._delivered = self._tally("tuili_delivered_tokens", "Tokens of the text that clients got.")
        self._per_request = PerRequest(self._histogram)
        by_source = self._counter(
            "tuili_prompt_tokens_by_source",
            "Prompt tokens of ended requests, computed or found in the prefix cache; none come from elsewhere.",
            "source",
        )
        self._prompt_by_source = {source: by_source.labels(name, source) for source in _PROMPT_SOURCES}
        self._cached_by_source = self._counter(
            "tuili_cached_tokens_by_source",
            "Prompt tokens that the prefix cache held, by where: on the device.",
            "source",
        ).labels(name, "device")

    # -- HTTP ----------------------------------------------------------------------------------------------------

    def observe_http(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one HTTP answer. ``route`` is the route's template, never the raw path."""
        method = method if method in HTTP_METHODS else "other"
        self._http_requests.labels(route, method, str(status)).inc()
        self._http_seconds.labels(route, method).observe(seconds)
        if route not in _PROBES:
            self._api_requests.labels(route, method, f"{status // 100}xx").inc()
            self._api_seconds.labels(route, method).observe(seconds)

    # -- engine --------------------------------------------------------------------------------------------------

    def observe_state(self, state: str) -> None:
        """Shows one of :data:`ENGINE_STATES` as the present one; any other: there is no engine."""
        for known in ENGINE_STATES:
            self._state.labels(self.model_name, known).set(known == state)
        if state not in ENGINE_STATES:
            self._cache_config.clear()
            self._formats.clear()
        self._awake.clear()
        if state in ("ready", "draining"):
            for sleep_state in _SLEEP_STATES:
                self._awake.labels(self.model_name, sleep_state).set(sleep_state == "awake")

    def observe_ready(self, ready: EngineReady, load_seconds: float) -> None:
        """Shows the facts about an engine process that came up.

        Args:
            load_seconds: time that its start took.
        """
        block_size = ready.info.kv_cache.block_size
        self._cache_config.clear()
        num_blocks, dtype = ready.max_kv_tokens // block_size, ready.info.kv_cache_dtype
        self._cache_config.labels(self.model_name, str(block_size), str(num_blocks), dtype).set(1)
        self._formats.clear()
        self._formats.labels(self.model_name, *(getattr(ready.info, name) for name in _FORMATS)).set(1)
        self._load_seconds.set(load_seconds)

    def observe_restart(self) -> None:
        """Counts an engine process that is started in place of one that died."""
        self._restarts.inc()

    def observe_stall(self) -> None:
        """Counts an engine process that is killed because it shows no progress."""
        self._stalls.inc()

    def observe_engine_lost(self) -> None:
        """Notes that there is no engine any more; the totals of the next one start at 0."""
        self._last = EngineStats()
        for gauge in (self._running, self._waiting, self._waiting_for["capacity"], self._kv_usage):
            gauge.set(0)

    def observe_step(self, stats: EngineStats, steps: Sequence[StepRecord] = ()) -> None:
        """Takes over the engine's state after a step, and what it says of the steps since the last time."""
        last, self._last = self._last, stats
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._waiting_for["capacity"].set(stats.num_waiting)
        self._kv_usage.set(stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0)
        for field, counter in self._totals.items():
            counter.inc(getattr(stats, field) - getattr(last, field))
        self._observe_tiers(stats, last)
        self._steps.inc(max(0, stats.steps_total - last.steps_total))
        for step in steps:
            self._kinds[step.encode, step.decode, step.replayed].inc()
            self._step_tokens.observe(step.tokens)
            self._step_seconds.observe(step.seconds)
            self._kernel_seconds.observe(step.kernel_seconds)
            self._host_seconds.observe(max(0.0, step.seconds - step.kernel_seconds))

    def _observe_tiers(self, stats: EngineStats, last: EngineStats) -> None:
        before = {tier.tier: tier for tier in last.prefix_tiers}
        for tier in stats.prefix_tiers:
            for field, counter in self._tier_totals.items():
                counted = getattr(before[tier.tier], field) if tier.tier in before else 0
                counter.labels(self.model_name, tier.tier).inc(getattr(tier, field) - counted)
            self._tier_bytes.labels(self.model_name, tier.tier).set(tier.held_bytes)

    def observe_delivery(self, seconds: float) -> None:
        """Notes the seconds that a step's outputs took from its frame to the clients' sockets."""
        self._delivery_seconds.observe(seconds)

    # -- requests (fed by the ledger) ----------------------------------------------------------------------------

    def observe_refusal(self, endpoint: str, reason: str) -> None:
        """Counts one request that was refused before anything was sent to the engine."""
        self._refusals.labels(self.model_name, endpoint, reason).inc()

    def observe_tokens(self, *, generated: int, delivered: int) -> None:
        """Counts tokens as they come, so that the rate of a long stream shows while it runs."""
        self._generated.inc(generated)
        self._delivered.inc(delivered)

    def observe_request(self, figures: RequestFigures) -> None:
        """Counts one request that ended; its tokens went to :meth:`observe_tokens`."""
        self._requests.labels(self.model_name, figures.endpoint, figures.outcome).inc()
        for reason in figures.finish_reasons:
            self._success.labels(self.model_name, reason.value).inc()
        self._prompt.inc(figures.prompt_tokens)
        self._cached.inc(figures.cached_tokens)
        self._cached_by_source.inc(figures.cached_tokens)
        self._prompt_by_source["local_cache_hit"].inc(figures.cached_tokens)
        self._prompt_by_source["local_compute"].inc(max(0, figures.prompt_tokens - figures.cached_tokens))
        self._per_request.observe(figures)

    def show(self, registry: CollectorRegistry) -> None:
        """Has the page show what another registry collects."""
        self._page.append(registry)

    def render(self) -> tuple[bytes, str]:
        """The page that Prometheus scrapes, with the series of all models, and its content type."""
        return generate_latest(self.registry if len(self._page) == 1 else OnePage(self._page)), CONTENT_TYPE
