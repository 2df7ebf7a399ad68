"""What a start prints for people."""

from __future__ import annotations

import json
import shlex

import msgspec

from app.serve.banner import Banner
from tests.fakes import fake_info, kv_group

INFO = fake_info([msgspec.structs.replace(kv_group(), dtype="bfloat16")], quantization="int8", kernels="avx2")


def test_the_ready_line_tells_formats_and_kernels() -> None:
    line = Banner("http://127.0.0.1:1", "m", needs_key=False).ready_line(INFO, 1.0)
    assert "int8 weights, float32 activations, bfloat16 KV cache, avx2 kernels" in line


def test_the_curl_survives_any_name() -> None:
    curl = shlex.split(Banner("http://127.0.0.1:1", "it's", needs_key=False).ready_line(INFO, 1.0).splitlines()[1])
    assert json.loads(curl[-1])["model"] == "it's"
