"""ONNX Runtime GenAI's generator: ``python -m benchmarks.peers.workers.onnxruntime_genai DIR THREADS``.

It knows static batches only: those that come together are padded to one length, and leave together.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

from benchmarks.peers.workers.protocol import Generate, Times, serve


def load(directory: str, threads: int) -> tuple[str, Generate]:
    """The generator, on so many threads."""
    import numpy as np
    import onnxruntime_genai as genai  # type: ignore[import-not-found, unused-ignore]

    config = genai.Config(directory)
    # Left to itself it takes half the cores.
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = genai.Model(config)

    def batch(prompts: list[list[int]], max_tokens: int) -> Times:
        length = max(map(len, prompts)) + max_tokens
        params = genai.GeneratorParams(model)
        # The shortest answer is the longest, so that no end-of-text token ends it.
        params.set_search_options(
            batch_size=len(prompts), min_length=length, max_length=length, do_sample=False, num_beams=1
        )
        generator = genai.Generator(model, params)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        times = []
        for _ in range(max_tokens):
            generator.generate_next_token()
            times.append(time.perf_counter())
        return [list(times) for _ in prompts]

    def generate(
        prompts: list[list[int]], max_tokens: int, concurrency: int, _prefix: int
    ) -> tuple[list[float], Times]:
        started: list[float] = []
        times: Times = []
        for start in range(0, len(prompts), concurrency):
            together = prompts[start : start + concurrency]
            started += itertools.repeat(time.perf_counter(), len(together))
            times += batch(together, max_tokens)
        return started, times

    return str(genai.__version__), generate


if __name__ == "__main__":
    serve(lambda: load(sys.argv[1], int(sys.argv[2])))
