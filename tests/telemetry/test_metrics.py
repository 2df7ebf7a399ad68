"""The page that Prometheus scrapes."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.contract.frames import EngineStats, RequestTimings, StepRecord, TierStats
from app.contract.request import FinishReason
from app.telemetry.metrics import Metrics
from app.telemetry.per_request import RequestFigures
from tests.fakes import fake_ready, kv_group

READY = fake_ready(groups=[kv_group(num_blocks=4)])
STATS = EngineStats(
    num_running=2,
    num_waiting=3,
    blocks_used=1,
    blocks_total=4,
    steps_total=1,
    prompt_tokens_total=20,
    generation_tokens_total=7,
    preemptions_total=1,
    prefix_query_tokens_total=40,
    prefix_hit_tokens_total=16,
)
STEP = StepRecord(tokens=22, seconds=0.01, kernel_seconds=0.0092, decode=False, replayed=True)
FIGURES = RequestFigures(
    endpoint="/v1/completions",
    outcome="ok",
    finish_reasons=[FinishReason.STOP],
    prompt_tokens=20,
    cached_tokens=16,
    choice_tokens=[5, 2],
    max_tokens=9,
    seconds=1.5,
    timings=RequestTimings(arrival=1.0, first_scheduled=1.1, first_token=1.2, finished=2.0),
    token_intervals=[0.01, 0.02],
)
# What dashboards and autoscalers read, with a sample each must have.
ALIASES = {
    "vllm:num_requests_running": "",
    "vllm:num_requests_waiting": "",
    "vllm:kv_cache_usage_perc": "",
    "vllm:cache_config_info": "",
    "vllm:prompt_tokens_total": "",
    "vllm:generation_tokens_total": "",
    "vllm:num_preemptions_total": "",
    "vllm:prefix_cache_queries_total": "",
    "vllm:prefix_cache_hits_total": "",
    "vllm:request_success_total": "",
    "vllm:time_to_first_token_seconds": "_bucket",
    "vllm:inter_token_latency_seconds": "_bucket",
    "vllm:e2e_request_latency_seconds": "_bucket",
    "vllm:request_queue_time_seconds": "_bucket",
    "vllm:request_prefill_time_seconds": "_bucket",
    "vllm:request_decode_time_seconds": "_bucket",
    "vllm:request_inference_time_seconds": "_bucket",
    "vllm:iteration_tokens_total": "_bucket",
    # Older names of some.
    "vllm:gpu_cache_usage_perc": "",
    "vllm:time_per_output_token_seconds": "_bucket",
    "vllm:request_params_max_tokens": "_bucket",
    "vllm:request_params_n": "_bucket",
}
_OF_ALL = frozenset({"model_name", "engine"})
# All that the boards which come with vLLM ask for, but for its options (adapters, offloading, transfer, drafts, sleep):
# series, and the labels that they filter and group by besides those that the scraper adds.
BOARDS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "vllm:prompt_tokens_total",
            "vllm:prompt_tokens_cached_total",
            "vllm:generation_tokens_total",
            "vllm:num_preemptions_total",
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_hits_total",
        ),
        _OF_ALL,
    ),
    **{
        f"vllm:{name}_{part}": _OF_ALL | ({"le"} if part == "bucket" else set())
        for name in (
            "e2e_request_latency_seconds",
            "inter_token_latency_seconds",
            "iteration_tokens_total",
            "request_decode_time_seconds",
            "request_generation_tokens",
            "request_max_num_generation_tokens",
            "request_prefill_kv_computed_tokens",
            "request_prefill_time_seconds",
            "request_prompt_tokens",
            "request_queue_time_seconds",
            "request_time_per_output_token_seconds",
            "time_to_first_token_seconds",
        )
        for part in ("bucket", "sum", "count")
    },
    "vllm:cache_config_info": frozenset({"engine", "num_gpu_blocks", "block_size", "cache_dtype"}),
    "vllm:engine_sleep_state": _OF_ALL | {"sleep_state"},
    "vllm:num_requests_waiting_by_reason": _OF_ALL | {"reason"},
    "vllm:prompt_tokens_by_source_total": _OF_ALL | {"source"},
    "vllm:prompt_tokens_cached_by_source_total": _OF_ALL | {"source"},
    "vllm:request_success_total": _OF_ALL | {"finished_reason"},
    "http_requests_total": frozenset({"status", "handler"}),
    "http_request_duration_seconds_sum": frozenset({"handler"}),
    "http_request_duration_seconds_count": frozenset({"handler"}),
    "process_cpu_seconds_total": frozenset(),
    "process_resident_memory_bytes": frozenset(),
    "process_start_time_seconds": frozenset(),
    "process_open_fds": frozenset(),
    "process_max_fds": frozenset(),
}
# Values of those labels that the boards ask for by name.
VALUES = {
    ("vllm:engine_sleep_state", "sleep_state"): {"awake", "discard_all"},
    ("vllm:num_requests_waiting_by_reason", "reason"): {"capacity", "deferred"},
    ("vllm:prompt_tokens_by_source_total", "source"): {"local_compute", "local_cache_hit", "external_kv_transfer"},
    ("vllm:request_success_total", "finished_reason"): {"stop", "length", "abort", "error"},
    ("http_requests_total", "status"): {"2xx", "5xx"},
    ("vllm:time_to_first_token_seconds_bucket", "le"): {"0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "10.0"},
    ("vllm:request_time_per_output_token_seconds_bucket", "le"): {
        *("0.025", "0.05", "0.075", "0.1", "0.15", "0.2", "0.3", "0.5")
    },
}


def filled() -> Metrics:
    """Metrics that have seen one of everything."""
    metrics = Metrics("m", version="1.2.3")
    metrics.observe_ready(READY, 2.5)
    metrics.observe_state("ready")
    metrics.observe_step(STATS, [STEP])
    metrics.observe_delivery(0.0004)
    metrics.observe_tokens(generated=7, delivered=5)
    metrics.observe_request(FIGURES)
    for status in (200, 503):
        metrics.observe_http(route="/v1/completions", method="POST", status=status, seconds=0.1)
    return metrics


def page(metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, as a scraper reads them."""
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


@pytest.mark.parametrize(("name", "suffix"), ALIASES.items())
def test_the_names_others_read_are_there(name: str, suffix: str) -> None:
    samples = page(filled())[name + suffix]
    assert all(labels["model_name"] == "m" for labels, _ in samples)
    assert sum(value for _, value in samples) > 0


@pytest.mark.parametrize(("name", "labels"), BOARDS.items())
def test_boards_find_what_they_ask_for(name: str, labels: frozenset[str]) -> None:
    samples = page(filled())[name]
    assert all(labels <= sample.keys() for sample, _ in samples)


@pytest.mark.parametrize(("of", "values"), VALUES.items())
def test_boards_find_the_values_that_they_ask_for(of: tuple[str, str], values: set[str]) -> None:
    name, label = of
    assert values <= {labels[label] for labels, _ in page(filled())[name]}


def test_aliases_agree_with_our_own_names() -> None:
    samples = page(filled())
    assert samples["tuili_generated_tokens_total"] == [({"model_name": "m"}, 7)]
    assert samples["vllm:generation_tokens_total"] == [({"model_name": "m", "engine": "0"}, 7)]
    ours = [({**labels, "engine": "0"}, value) for labels, value in samples["tuili_request_seconds_bucket"]]
    assert samples["vllm:e2e_request_latency_seconds_bucket"] == ours
    shape = {"block_size": "16", "num_gpu_blocks": "4", "cache_dtype": READY.info.kv_cache_dtype}
    assert samples["vllm:cache_config_info"] == [({"model_name": "m", "engine": "0", **shape}, 1)]
    reasons = {labels["finished_reason"]: value for labels, value in samples["vllm:request_success_total"]}
    assert reasons == {"stop": 1, "length": 0, "abort": 0, "error": 0}


def test_figures_of_a_request() -> None:
    samples = page(filled())

    def sum_of(name: str) -> tuple[float, float]:
        return samples[f"vllm:{name}_count"][0][1], samples[f"vllm:{name}_sum"][0][1]

    assert sum_of("request_prompt_tokens") == (1, 20)
    assert sum_of("request_prefill_kv_computed_tokens") == (1, 4)
    assert sum_of("request_generation_tokens") == (2, 7)
    assert sum_of("request_max_num_generation_tokens") == (1, 5)
    assert sum_of("request_params_max_tokens") == (1, 9)
    assert sum_of("request_params_n") == (1, 2)
    assert sum_of("request_time_per_output_token_seconds") == pytest.approx((1, 0.8 / 4))
    assert sum_of("request_inference_time_seconds") == pytest.approx((1, 0.9))
    sources = {labels["source"]: value for labels, value in samples["vllm:prompt_tokens_by_source_total"]}
    assert sources == {"local_compute": 4, "local_cache_hit": 16, "external_kv_transfer": 0}
    waiting = {labels["reason"]: value for labels, value in samples["vllm:num_requests_waiting_by_reason"]}
    assert waiting == {"capacity": 3, "deferred": 0}


def test_a_stop_string_ends_a_request_when_its_text_does() -> None:
    metrics = Metrics("m")
    timings = RequestTimings(arrival=1.0, first_scheduled=1.1, first_token=1.2)
    metrics.observe_request(dataclasses.replace(FIGURES, timings=timings))
    metrics.observe_request(dataclasses.replace(FIGURES, timings=timings, outcome="aborted"))
    samples = page(metrics)
    assert samples["vllm:request_decode_time_seconds_count"][0][1] == 1
    assert samples["vllm:request_decode_time_seconds_sum"][0][1] == pytest.approx(1.3)


def test_requests_to_encode_have_no_choices() -> None:
    metrics = Metrics("m")
    metrics.observe_request(dataclasses.replace(FIGURES, choice_tokens=[], timings=None))
    samples = page(metrics)
    for name in ("request_generation_tokens", "request_params_n", "request_time_per_output_token_seconds"):
        assert samples[f"vllm:{name}_count"][0][1] == 0
    assert samples["vllm:request_prompt_tokens_count"][0][1] == 1


def test_an_engine_is_awake_while_it_is_there() -> None:
    metrics = Metrics("m")
    assert "vllm:engine_sleep_state" not in page(metrics)
    for state, there in (("ready", True), ("draining", True), ("dead", False), ("loading", False)):
        metrics.observe_state(state)
        assert ("vllm:engine_sleep_state" in page(metrics)) is there


def test_probes_are_no_requests_of_the_api() -> None:
    metrics = Metrics("m")
    for route in ("/livez", "/metrics", "/health"):
        metrics.observe_http(route=route, method="GET", status=200, seconds=0.1)
    metrics.observe_http(route="/v1/models", method="GET", status=404, seconds=0.1)
    labels = {"handler": "/v1/models", "method": "GET", "status": "4xx"}
    assert page(metrics)["http_requests_total"] == [(labels, 1)]


def test_an_engine_that_starts_again_adds_to_the_counters() -> None:
    metrics = filled()
    metrics.observe_engine_lost()
    metrics.observe_restart()
    metrics.observe_step(EngineStats(steps_total=2, prompt_tokens_total=3, preemptions_total=1))
    samples = page(metrics)
    assert samples["vllm:num_preemptions_total"][0][1] == 2
    assert samples["tuili_engine_prompt_tokens_total"][0][1] == 23
    assert samples["tuili_engine_steps_total"][0][1] == 3
    assert samples["tuili_engine_restarts_total"][0][1] == 1


def test_tiers_of_the_prefix_cache_are_told_apart() -> None:
    metrics = Metrics("m")
    for hits, held in ((2, 100), (5, 60)):
        tiers = [TierStats(tier="ram", hits_total=hits, held_bytes=held), TierStats(tier="disk", damaged_total=1)]
        metrics.observe_step(EngineStats(prefix_tiers=tiers))
    metrics.observe_engine_lost()
    metrics.observe_step(EngineStats(prefix_tiers=[TierStats(tier="ram", hits_total=1, held_bytes=10)]))
    samples = page(metrics)
    of_tier = {labels["tier"]: value for labels, value in samples["tuili_prefix_tier_hits_total"]}
    assert of_tier == {"ram": 6, "disk": 0}
    assert {labels["tier"]: value for labels, value in samples["tuili_prefix_tier_damaged_total"]}["disk"] == 1
    assert {labels["tier"]: value for labels, value in samples["tuili_prefix_tier_bytes"]}["ram"] == 10


def test_a_frame_without_a_step_is_no_step() -> None:
    metrics = filled()
    metrics.observe_step(msgspec.structs.replace(STATS, num_running=0))
    samples = page(metrics)
    assert samples["vllm:iteration_tokens_total_count"][0][1] == 1
    assert samples["vllm:num_requests_running"][0][1] == 0


def test_each_step_is_counted_by_what_it_did_and_how() -> None:
    metrics = filled()
    decode = StepRecord(tokens=2, seconds=0.005, kernel_seconds=0.0048, decode=True, replayed=True)
    eager = StepRecord(tokens=2, seconds=0.02, kernel_seconds=0.03, decode=True, replayed=False)
    encode = StepRecord(tokens=0, seconds=0.0, kernel_seconds=0.0, decode=False, replayed=True, encode=True)
    metrics.observe_step(msgspec.structs.replace(STATS, steps_total=4), [decode, decode, eager, encode])
    samples = page(metrics)
    kinds = {(s["kind"], s["run"]): value for s, value in samples["tuili_engine_steps_by_kind_total"]}
    assert kinds == {
        ("decode", "replayed"): 2,
        ("decode", "eager"): 1,
        ("prefill", "replayed"): 1,
        ("prefill", "eager"): 0,
        ("encode", "replayed"): 1,
        ("encode", "eager"): 0,
    }
    assert samples["tuili_step_tokens_sum"][0][1] == 28
    assert samples["tuili_step_kernel_seconds_sum"][0][1] == pytest.approx(0.0092 + 2 * 0.0048 + 0.03)
    host = samples["tuili_step_host_seconds_sum"][0][1]
    assert host == pytest.approx(0.0008 + 2 * 0.0002), "never less than nothing"
    buckets = {s["le"]: value for s, value in samples["tuili_step_host_seconds_bucket"]}
    assert (buckets["5e-05"], buckets["0.00075"], buckets["0.001"], buckets["+Inf"]) == (2, 4, 5, 5)


def test_http_is_counted_under_bounded_labels() -> None:
    metrics = Metrics("m")
    for method in ("GET", "BREW", "PROPFIND"):
        metrics.observe_http(route="/v1/models", method=method, status=200, seconds=0.1)
    counted = {labels["method"]: value for labels, value in page(metrics)["tuili_http_requests_total"]}
    assert counted == {"GET": 1, "other": 2}


def test_one_state_at_a_time() -> None:
    metrics = Metrics("m")
    for state in ("ready", "draining"):
        metrics.observe_state(state)
        shown = {labels["state"]: value for labels, value in page(metrics)["tuili_engine_state"]}
        assert [name for name, value in shown.items() if value] == [state]
        assert len(shown) == 4


def test_process_and_build_are_described() -> None:
    samples = page(filled())
    assert samples["tuili_build_info"] == [({"version": "1.2.3"}, 1)]
    assert "python_gc_collections_total" in samples
    assert "python_info" in samples


def test_two_servers_in_one_process_do_not_share_counters() -> None:
    filled()
    assert page(Metrics("m"))["vllm:generation_tokens_total"][0][1] == 0


def test_models_that_are_served_together_share_a_page() -> None:
    first = Metrics("a", version="1")
    second = Metrics("b", beside=first)
    first.observe_tokens(generated=3, delivered=3)
    second.observe_tokens(generated=5, delivered=5)
    text = first.render()[0].decode()
    assert text.count("# TYPE tuili_generated_tokens_total counter") == 1
    assert text.count("tuili_build_info{") == 1
    for model, count in (("a", 3.0), ("b", 5.0)):
        assert f'tuili_generated_tokens_total{{model_name="{model}"}} {count}' in text
        assert f'vllm:generation_tokens_total{{engine="0",model_name="{model}"}} {count}' in text
    assert "tuili_build_info{" in second.render()[0].decode()
