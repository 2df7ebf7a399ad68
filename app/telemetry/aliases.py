"""Names under which dashboards already know our series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

ALIASES: dict[str, tuple[str, ...]] = {
    "tuili_requests_running": ("vllm:num_requests_running",),
    "tuili_requests_waiting": ("vllm:num_requests_waiting",),
    "tuili_requests_waiting_by_reason": ("vllm:num_requests_waiting_by_reason",),
    "tuili_kv_cache_usage_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "tuili_cache_config_info": ("vllm:cache_config_info",),
    "tuili_engine_awake": ("vllm:engine_sleep_state",),
    "tuili_prompt_tokens": ("vllm:prompt_tokens",),
    "tuili_cached_tokens": ("vllm:prompt_tokens_cached",),
    "tuili_prompt_tokens_by_source": ("vllm:prompt_tokens_by_source",),
    "tuili_cached_tokens_by_source": ("vllm:prompt_tokens_cached_by_source",),
    "tuili_generated_tokens": ("vllm:generation_tokens",),
    "tuili_preemptions": ("vllm:num_preemptions",),
    "tuili_draft_tokens": ("vllm:spec_decode_num_draft_tokens",),
    "tuili_accepted_draft_tokens": ("vllm:spec_decode_num_accepted_tokens",),
    "tuili_prefix_cache_queries": ("vllm:prefix_cache_queries",),
    "tuili_prefix_cache_hits": ("vllm:prefix_cache_hits",),
    "tuili_request_success": ("vllm:request_success",),
    "tuili_time_to_first_token_seconds": ("vllm:time_to_first_token_seconds",),
    "tuili_inter_token_latency_seconds": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    "tuili_request_time_per_output_token_seconds": ("vllm:request_time_per_output_token_seconds",),
    "tuili_request_seconds": ("vllm:e2e_request_latency_seconds",),
    "tuili_request_queue_seconds": ("vllm:request_queue_time_seconds",),
    "tuili_request_prefill_seconds": ("vllm:request_prefill_time_seconds",),
    "tuili_request_decode_seconds": ("vllm:request_decode_time_seconds",),
    "tuili_request_inference_seconds": ("vllm:request_inference_time_seconds",),
    "tuili_request_prompt_tokens": ("vllm:request_prompt_tokens",),
    "tuili_request_computed_prompt_tokens": ("vllm:request_prefill_kv_computed_tokens",),
    "tuili_choice_generated_tokens": ("vllm:request_generation_tokens",),
    "tuili_request_longest_choice_tokens": ("vllm:request_max_num_generation_tokens",),
    "tuili_request_max_tokens": ("vllm:request_params_max_tokens",),
    "tuili_request_choices": ("vllm:request_params_n",),
    "tuili_step_tokens": ("vllm:iteration_tokens_total",),
}
"""The ``vllm:`` names of each series by our own name; counters without ``_total``. Of two names the second is older."""
ENGINE = "0"
"""Value of the label ``engine``, by which dashboards tell the engines of a server apart: there is one."""


class Aliases(Collector):
    """Exports collectors a second time, under other names and with the label ``engine``.

    Args:
        sources: collectors with their other names.
    """

    def __init__(self, sources: Sequence[tuple[str, Collector]]) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        """Reads the collectors, and gives their series the other names."""
        for alias, source in self._sources:
            for family in source.collect():
                renamed = Metric(alias, family.documentation, family.type)
                renamed.samples = [_rename(sample, family.name, alias) for sample in family.samples]
                yield renamed


def _rename(sample: Sample, name: str, alias: str) -> Sample:
    labels = {**sample.labels, "engine": ENGINE}
    return sample._replace(name=alias + sample.name.removeprefix(name), labels=labels)
