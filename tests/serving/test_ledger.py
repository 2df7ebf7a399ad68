"""What is written down of a request, and what never is."""

from __future__ import annotations

import json
import time

from structlog.testing import capture_logs

from app.contract.frames import RequestTimings
from app.contract.request import FinishReason, SamplingParams
from app.errors import RequestError
from app.serving.ledger import Ledger
from app.serving.types import GenerationRequest
from app.telemetry.metrics import Metrics
from tests.serving.rig import ENDPOINT, MODEL, running, sample_value

REQUEST = GenerationRequest(request_id="r1", prompt_token_ids=[1, 2, 3], params=SamplingParams(max_tokens=7), n=2)


def test_a_request_is_one_line_and_one_count() -> None:
    metrics = Metrics(MODEL)
    entry = Ledger(metrics).open(REQUEST, endpoint=ENDPOINT, stream=True, arrival=time.monotonic())
    with capture_logs() as lines:
        entry.add_generated(4)
        entry.add_interval(0.3, 3)
        entry.add_delivered(2)
        entry.note_timings(RequestTimings(arrival=10.0, first_scheduled=10.5, first_token=11.0, finished=13.0))
        entry.close([FinishReason.STOP, FinishReason.LENGTH])
        entry.close([FinishReason.ABORT], "engine_error")
    (line,) = lines
    assert line["request_id"] == "r1"
    assert line["finish_reasons"] == ["stop", "length"]
    assert line["error_code"] is None
    assert (line["prompt_tokens"], line["completion_tokens"], line["generated_tokens"]) == (3, 2, 4)
    assert (line["queue_seconds"], line["first_token_seconds"], line["decode_seconds"]) == (0.5, 1.0, 2.0)
    assert entry.record.token_intervals == [0.3 / 3] * 3
    assert sample_value(metrics, "tuili_requests_total", endpoint=ENDPOINT, outcome="ok") == 1
    assert sample_value(metrics, "vllm:time_to_first_token_seconds_sum") == 1.0
    assert sample_value(metrics, "vllm:request_queue_time_seconds_sum") == 0.5
    assert sample_value(metrics, "vllm:request_prefill_time_seconds_sum") == 0.5
    assert sample_value(metrics, "vllm:request_decode_time_seconds_sum") == 2.0
    assert sample_value(metrics, "vllm:inter_token_latency_seconds_count") == 3


def test_a_request_that_never_ran_has_no_latency() -> None:
    metrics = Metrics(MODEL)
    entry = Ledger(metrics).open(REQUEST, endpoint=ENDPOINT, stream=False, arrival=time.monotonic())
    entry.close([FinishReason.ABORT] * 2)
    assert sample_value(metrics, "tuili_requests_total", endpoint=ENDPOINT, outcome="aborted") == 1
    assert sample_value(metrics, "vllm:time_to_first_token_seconds_count") == 0
    assert sample_value(metrics, "vllm:e2e_request_latency_seconds_count") == 1


def test_a_refusal_is_counted_apart() -> None:
    metrics = Metrics(MODEL)
    with capture_logs() as lines:
        Ledger(metrics).refuse("r1", ENDPOINT, RequestError("full", status=429, code="overloaded"))
    assert [(line["error_code"], line["status"]) for line in lines] == [("overloaded", 429)]
    assert sample_value(metrics, "tuili_requests_refused_total", endpoint=ENDPOINT, reason="overloaded") == 1
    assert sample_value(metrics, "vllm:e2e_request_latency_seconds_count") == 0


def test_lines_can_be_left_out() -> None:
    ledger = Ledger(Metrics(MODEL), log_requests=False)
    with capture_logs() as lines:
        ledger.open(REQUEST, endpoint=ENDPOINT, stream=True, arrival=time.monotonic()).close([FinishReason.STOP])
        ledger.refuse("r1", ENDPOINT, RequestError("full"))
    assert lines == []


async def test_neither_prompt_nor_answer_is_ever_logged() -> None:
    secret = "a secret prompt"
    async with running() as rig:
        with capture_logs() as lines:
            (completion,) = await (await rig.submit(secret, max_tokens=12, stop=("never said",))).collect()
    text = json.dumps(lines)
    assert len(lines) == 1
    assert secret not in text
    assert str(list(secret.encode())) not in text
    assert completion.text not in text
    assert "never said" not in text
