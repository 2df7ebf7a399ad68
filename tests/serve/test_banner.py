"""What a start prints for people."""

from __future__ import annotations

import json
import shlex
from typing import Any

import msgspec

from app.serve.banner import Banner
from tests.fakes import fake_info, kv_group

PLAIN: dict[str, Any] = {"needs_key": False, "sampling": {"temperature": 0.6, "top_k": 40}, "is_recommended": False}
INFO = fake_info([msgspec.structs.replace(kv_group(), dtype="bfloat16")], quantization="int8", kernels="avx2")


def test_the_ready_line_tells_formats_and_kernels() -> None:
    line = Banner("http://127.0.0.1:1", "m", **PLAIN).ready_line(INFO, 1.0)
    assert "int8 weights, float32 activations, bfloat16 KV cache, avx2 kernels" in line


def test_the_ready_line_tells_what_another_library_computes() -> None:
    theirs = msgspec.structs.replace(INFO, via="transformers")
    line = Banner("http://127.0.0.1:1", "m", **PLAIN).ready_line(theirs, 1.0)
    assert "avx2 kernels, via transformers: slow, theirs)" in line


def test_the_curl_survives_any_name() -> None:
    curl = shlex.split(Banner("http://127.0.0.1:1", "it's", **PLAIN).ready_line(INFO, 1.0).splitlines()[1])
    assert json.loads(curl[-1])["model"] == "it's"


def test_the_ready_line_tells_how_answers_are_sampled() -> None:
    def last(**other: Any) -> str:
        return Banner("http://127.0.0.1:1", "m", **PLAIN | other).ready_line(INFO, 1.0).splitlines()[2]

    assert "temperature 0.6, top_k 40 where a request does not say (by --default-sampling" in last()
    assert "(as the model recommends)" in last(is_recommended=True)
    assert "temperature 1 " in last(sampling={})
