"""OpenVINO GenAI's continuous batching: ``python -m benchmarks.peers.workers.openvino_genai DIR PRECISION``."""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

from benchmarks.peers.workers.protocol import Generate, Times, serve

KV_CACHE_GB = 1
BATCH_TOKENS = 512
"""Tokens a step; more made the prefill of long prompts slower on two cores."""
MAX_SEQUENCES = 16


def load(directory: str, precision: str) -> tuple[str, Generate]:
    """The pipeline, computing in ``precision`` (``f32``, ``bf16``, or ``default`` for what it chooses)."""
    import numpy as np
    import openvino as ov  # type: ignore[import-not-found, unused-ignore]
    import openvino_genai as genai  # type: ignore[import-not-found, unused-ignore]

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = KV_CACHE_GB
    scheduler.max_num_batched_tokens = BATCH_TOKENS
    scheduler.max_num_seqs = MAX_SEQUENCES
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    properties = {} if precision == "default" else {"INFERENCE_PRECISION_HINT": precision}
    pipeline = genai.ContinuousBatchingPipeline(directory, scheduler, "CPU", properties, {})
    ids = itertools.count()

    def start(prompt: list[int], max_tokens: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        return pipeline.add_request(next(ids), ov.Tensor(np.array([prompt], dtype=np.int64)), config)

    def generate(
        prompts: list[list[int]], max_tokens: int, concurrency: int, _prefix: int
    ) -> tuple[list[float], Times]:
        waiting = list(enumerate(prompts))[::-1]
        running: dict[int, Any] = {}
        started = [0.0] * len(prompts)
        times: Times = [[] for _ in prompts]
        while waiting or running:
            while waiting and len(running) < concurrency:
                index, prompt = waiting.pop()
                started[index] = time.perf_counter()
                running[index] = start(prompt, max_tokens)
            pipeline.step()
            now = time.perf_counter()
            for index, handle in list(running.items()):
                while handle.can_read():
                    times[index] += [now for output in handle.read().values() for _ in output.generated_ids]
                if len(times[index]) >= max_tokens:
                    del running[index]
        return started, times

    return str(genai.__version__), generate


if __name__ == "__main__":
    serve(lambda: load(sys.argv[1], sys.argv[2]))
