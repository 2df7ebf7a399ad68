"""What a start prints for people."""

from __future__ import annotations

import json
import shlex

from app.serve.banner import Banner
from app.types import EngineReady

READY = EngineReady(
    max_model_len=1, vocab_size=2, block_size=3, num_blocks=4, dtype="float32", kv_cache_dtype="bfloat16",
    device="cpu", num_parameters=5, weight_bytes=6, kv_cache_bytes=7, pid=8, quantization="int8", kernels="avx2",
)  # fmt: skip


def test_the_ready_line_tells_formats_and_kernels() -> None:
    line = Banner("http://127.0.0.1:1", "m", needs_key=False).ready_line(READY, 1.0)
    assert "int8 weights, float32 activations, bfloat16 KV cache, avx2 kernels" in line


def test_the_curl_survives_any_name() -> None:
    curl = shlex.split(Banner("http://127.0.0.1:1", "it's", needs_key=False).ready_line(READY, 1.0).splitlines()[1])
    assert json.loads(curl[-1])["model"] == "it's"
