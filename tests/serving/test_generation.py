"""Requests through admission, a real engine with a fake model, and back to text."""

from __future__ import annotations

import asyncio
import io
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from app.contract.frames import ClientFrame
from app.contract.request import FinishReason, SamplingParams
from app.engine.inproc import InprocConnection
from app.errors import RequestError
from app.serving import admission
from app.serving.admission import Permit
from app.serving.generation import Completion, Generation
from app.serving.generator import sampling_defaults
from app.serving.ledger import CLIENT_LEFT
from app.serving.types import ChoiceDelta, GenerationRequest
from tests.serving.rig import ENDPOINT, WAIT_SECONDS, Rig, make_rig, read, recite, repeat, running, until

LYRICS = "héllo wörld, 你好! "


async def test_streamed_text_is_the_whole_text() -> None:
    text = "The answer is 42 – 四十二 🎉."
    async with running(recite(text, prompt_len=6), delay=0.001) as rig:
        deltas = await read(await rig.submit("prompt", max_tokens=99))
        (whole,) = await (await rig.submit("prompt", max_tokens=99)).collect()
    assert len(deltas) > 10
    assert "".join(delta.text for delta in deltas) == whole.text == text
    assert whole.finish_reason is FinishReason.STOP
    assert whole.stop_reason is None
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [FinishReason.STOP]


async def test_usage_counts_the_end_token_and_cached_prompt_tokens() -> None:
    prompt = "p" * 40
    async with running(recite("abc", prompt_len=40)) as rig:
        first = await rig.submit(prompt, max_tokens=99)
        await first.collect()
        again = await rig.submit(prompt, max_tokens=99)
        await again.collect()
    assert (first.usage.prompt_tokens, first.usage.completion_tokens, first.usage.cached_tokens) == (40, 4, 0)
    assert again.usage.cached_tokens == 32
    assert again.timings is not None
    assert again.timings.finished is not None


async def test_choices_are_told_apart_and_share_the_prompt() -> None:
    prompt = "p" * 48
    async with running(recite("abc", prompt_len=48)) as rig:
        generation = await rig.submit(prompt, n=3, max_tokens=99, seed=7)
        completions = await generation.collect()
        assert rig.runner is not None
        inits = [init for step in rig.runner.steps for init in step.slots]
        computed = rig.client.stats.prompt_tokens_total
    assert [(completion.index, completion.text) for completion in completions] == [(0, "abc"), (1, "abc"), (2, "abc")]
    assert generation.usage.prompt_tokens == 48
    assert generation.usage.completion_tokens == 12
    assert sorted(init.sample_index for init in inits) == [0, 1, 2]
    assert {init.seed for init in inits} == {7}
    assert computed < 2 * 48


async def test_a_seed_is_drawn_when_there_is_none() -> None:
    async with running() as rig:
        seeds = set()
        for _ in range(3):
            generation = await rig.submit("prompt", n=2, max_tokens=1)
            await generation.collect()
            seeds.add(generation.seed)
        assert rig.runner is not None
        assert {init.seed for step in rig.runner.steps for init in step.slots} == seeds
    assert len(seeds) == 3


async def test_a_stop_string_ends_the_request_in_the_engine_too() -> None:
    says = repeat("abcdefgh")
    told = threading.Event()

    def next_token(context: Sequence[int]) -> int:
        if len(context) > 100:  # Else the engine may be done before the text side has seen a thing.
            told.wait(WAIT_SECONDS)
        return says(context)

    async with running(next_token, max_model_len=512) as rig:
        generation = await rig.submit("p", max_tokens=500, stop=("efg", "zzz"))
        deltas = await read(generation)
        told.set()
        await rig.settled()
        made = rig.client.stats.generation_tokens_total
    assert "".join(delta.text for delta in deltas) == "bcd"
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert deltas[-1].stop_reason == "efg"
    assert generation.usage.completion_tokens == 6
    assert made < 500


async def test_logprobs_stand_beside_their_tokens() -> None:
    async with running(recite("a好b", prompt_len=3)) as rig:
        generation = await rig.submit("xyz", max_tokens=99, logprobs=2, prompt_logprobs=1, n=2)
        completions = await generation.collect()
    assert generation.prompt_logprobs is not None
    assert [(entry.text, entry.logprob) for entry in generation.prompt_logprobs] == [
        ("x", None),
        ("y", -0.5),
        ("z", -0.5),
    ]
    assert [len(entry.top) for entry in generation.prompt_logprobs] == [0, 1, 1]
    for completion in completions:
        assert [token.token_id for token in completion.tokens] == completion.token_ids
        assert b"".join(token.bytes for token in completion.tokens) == "a好b</s>".encode()
        assert all(len(token.top) == 2 and token.top[0].token_id == token.token_id for token in completion.tokens)


async def test_a_prompt_can_be_scored_without_an_answer() -> None:
    async with running() as rig:
        generation = await rig.submit("xyz", max_tokens=0, prompt_logprobs=0)
        (completion,) = await generation.collect()
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", [], FinishReason.LENGTH)
    assert generation.usage.completion_tokens == 0
    assert generation.prompt_logprobs is not None
    assert len(generation.prompt_logprobs) == 3


async def test_leaving_at_any_moment_frees_the_blocks() -> None:
    async with running(repeat(LYRICS), delay=0.001, max_num_seqs=3, max_queue=64) as rig:
        chance = random.Random(0)

        async def leave_early(index: int) -> None:
            generation = await rig.submit("p" * chance.randrange(1, 60), n=chance.randrange(1, 3), max_tokens=200)
            reader = asyncio.create_task(read(generation))
            await asyncio.sleep(chance.random() * 0.05)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

        await asyncio.gather(*(leave_early(index) for index in range(24)))
        assert rig.client.in_flight == 0
        await rig.settled()
        assert len(rig.ledger.records) == 24
        assert all(FinishReason.ABORT in record.finish_reasons for record in rig.ledger.records)


async def test_closing_before_the_first_delta_aborts() -> None:
    async with running(delay=0.005) as rig:
        generation = await rig.submit("p", max_tokens=200)
        await generation.aclose()
        await generation.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(generation)
    assert [record.finish_reasons for record in rig.ledger.records] == [[FinishReason.ABORT]]


async def test_a_short_request_overtakes_a_long_one() -> None:
    async with running(repeat(LYRICS), delay=0.001) as rig:
        long = asyncio.create_task((await rig.submit("long", max_tokens=300)).collect())
        await until(lambda: rig.client.stats.generation_tokens_total > 5)
        await (await rig.submit("short", max_tokens=5)).collect()
        assert not long.done()
        assert (await long)[0].finish_reason is FinishReason.LENGTH


async def test_a_reader_that_falls_behind_gets_merged_deltas() -> None:
    async with running(repeat(LYRICS)) as rig:
        generation = await rig.submit("p", max_tokens=100)
        async with generation:
            await until(lambda: rig.client.in_flight == 0)
            deltas = [delta async for delta in generation]
    assert len(deltas) == 1
    assert len(deltas[0].token_ids) == 100


async def deltas_of(generation: Generation) -> list[ChoiceDelta]:
    return [delta async for delta in generation]


async def test_readers_that_keep_up_get_each_token_by_itself_however_quickly_steps_come() -> None:
    async with running(repeat("abc")) as rig:
        generations = [await rig.submit("p", max_tokens=100) for _ in range(4)]
        lists = await asyncio.gather(*map(deltas_of, generations))
    assert [[len(delta.token_ids) for delta in deltas] for deltas in lists] == [[1] * 100] * 4


async def test_a_slow_reader_is_dropped_alone() -> None:
    async with running(repeat("x"), max_backlog=50) as rig:
        slow = await rig.submit("p", n=2, max_tokens=400, request_id="slow")
        (quick,) = await (await rig.submit("p", max_tokens=300, request_id="quick")).collect()
        await until(lambda: rig.client.in_flight == 0)
        with pytest.raises(RequestError) as raised:
            await read(slow)
    assert len(quick.text) == 300
    assert raised.value.code == "slow_consumer"
    assert slow.generated_tokens < 120
    assert rig.ledger.records[-1].error_code == "slow_consumer"


async def test_what_came_before_an_error_is_delivered_first() -> None:
    async with running(repeat("abc"), delay=0.001) as rig:
        assert rig.runner is not None
        rig.runner.row_error = lambda _, row: "logits are not finite" if row.start > 20 else None
        said = io.StringIO()

        async def listen() -> None:
            async with await rig.submit("p", max_tokens=200, n=2) as generation:
                async for delta in generation:
                    said.write(delta.text)

        with pytest.raises(RequestError) as raised:
            await listen()
    assert raised.value.status == 500
    assert raised.value.code == "engine_error"
    assert len(said.getvalue()) >= 10
    assert rig.ledger.records[-1].error_code == "engine_error"
    assert rig.ledger.records[-1].generated_tokens >= len(said.getvalue())


async def test_a_request_whose_time_is_up_in_the_queue_is_answered() -> None:
    async with running(repeat("x"), delay=0.005, max_num_seqs=1) as rig:
        long = asyncio.create_task((await rig.submit("long", max_tokens=60)).collect())
        await until(lambda: rig.client.stats.num_running == 1)
        with pytest.raises(RequestError) as raised:
            await (await rig.submit("late", max_tokens=5, seconds=0.02)).collect()
        assert (raised.value.status, raised.value.code) == (504, "deadline_exceeded")
        await long


async def test_equal_request_ids_do_not_meet() -> None:
    async with running(repeat(LYRICS), delay=0.001) as rig:
        generations = [await rig.submit("p" * length, max_tokens=20, request_id="same") for length in (3, 4)]
        first, second = await asyncio.gather(*(generation.collect() for generation in generations))
    assert len(first[0].token_ids) == len(second[0].token_ids) == 20
    assert first[0].token_ids[1:] == second[0].token_ids[:-1]


# -- admission ---------------------------------------------------------------------------------------------------


async def refusal(
    rig: Rig, prompt: str | list[int] = "p", *, n: int = 1, seconds: float | None = None, **params: Any
) -> RequestError:
    """The error of a request that must be refused, with nothing sent."""
    before = rig.client.in_flight
    with pytest.raises(RequestError) as raised:
        await rig.submit(prompt, n=n, seconds=seconds, **params)
    assert rig.client.in_flight == before
    return raised.value


async def test_requests_that_can_never_be_served_are_400() -> None:
    async with running(max_model_len=100, num_blocks=4) as rig:
        assert (await refusal(rig, "")).status == 400
        assert (await refusal(rig, [5, 260])).status == 400
        assert (await refusal(rig, [-1])).status == 400
        assert (await refusal(rig, n=0)).param == "n"
        assert (await refusal(rig, stop=("",))).param == "stop"
        assert (await refusal(rig, temperature=float("nan"))).status == 400
        assert (await refusal(rig, seed=1 << 64)).status == 400
        assert (await refusal(rig, n=1000)).status == 400
        too_long = await refusal(rig, "p" * 30, max_tokens=35)
        assert too_long.code == "context_length_exceeded"
        assert "30" in too_long.message
        assert "35" in too_long.message
        assert "64" in too_long.message  # the KV cache: 4 blocks of 16
        assert rig.sample("tuili_requests_refused_total", endpoint=ENDPOINT, reason="context_length_exceeded") == 1
        assert rig.ledger.records == []


async def test_a_request_that_fits_no_frame_harms_nobody_else() -> None:
    async with running(repeat("x"), delay=0.001) as rig:
        neighbour = await rig.submit("p", max_tokens=50)
        odd = await rig.submit("p", max_tokens=5, top_k=1 << 70)
        with pytest.raises(RequestError) as raised:
            await odd.collect()
        assert raised.value.status == 400
        assert (await neighbour.collect())[0].finish_reason is FinishReason.LENGTH


async def test_no_time_left_is_504() -> None:
    async with running() as rig:
        assert (await refusal(rig, seconds=0.0)).status == 504


async def test_remaining_tokens_is_what_fits() -> None:
    async with running(max_model_len=100) as rig:
        assert rig.generator.max_model_len == 100
        assert rig.generator.remaining_tokens(30) == 70
        assert rig.generator.remaining_tokens(101) == 0
        await (await rig.submit("p" * 30, max_tokens=rig.generator.remaining_tokens(30))).collect()


async def test_a_full_queue_is_429_with_an_honest_retry_after() -> None:
    async with running(repeat("x"), delay=0.01, max_num_seqs=2, max_queue=2) as rig:
        for _ in range(3):
            await (await rig.submit("p", n=2, max_tokens=3)).collect()
        generations = [await rig.submit("p", max_tokens=100) for _ in range(4)]
        error = await refusal(rig)
        assert (error.status, error.code) == (429, "overloaded")
        assert error.retry_after is not None
        assert 1 <= error.retry_after <= 60
        with pytest.raises(RequestError), rig.generator.permit("early", endpoint=ENDPOINT):
            raise AssertionError("there was no room")
        assert rig.client.readiness() == (True, "")
        for generation in generations:
            await generation.aclose()
        await (await rig.submit("p", max_tokens=3)).collect()
        assert rig.sample("tuili_requests_refused_total", endpoint=ENDPOINT, reason="overloaded") == 2


async def test_clients_that_come_and_leave_do_not_fill_the_memory_while_the_engine_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = asyncio.Event()
    send = InprocConnection.send

    async def send_late(connection: InprocConnection, frame: ClientFrame) -> None:
        await reads.wait()
        await send(connection, frame)

    monkeypatch.setattr(admission, "MAX_UNSENT", 8)
    async with running(max_num_seqs=2, max_queue=2) as rig:
        monkeypatch.setattr(InprocConnection, "send", send_late)

        async def come_and_leave() -> None:
            for _ in range(50):
                await (await rig.submit("p", max_tokens=1)).aclose()

        with pytest.raises(RequestError) as refused:
            await come_and_leave()
        assert refused.value.status == 429
        assert rig.client.unsent <= 8 + 2
        reads.set()
        await until(lambda: not rig.client.unsent)
        await (await rig.submit("p", max_tokens=1)).collect()


def permitted(rig: Rig, prompt: str = "p", *, n: int = 1, max_tokens: int = 1) -> GenerationRequest:
    return GenerationRequest("permitted", list(prompt.encode()), SamplingParams(max_tokens=max_tokens), n=n)


async def submitted(rig: Rig, permit: Permit, *requests: GenerationRequest) -> list[Completion]:
    generations = rig.generator.submit(permit, requests, endpoint=ENDPOINT, stream=False)
    return [completion for generation in generations for completion in await generation.collect()]


async def test_a_permit_holds_room_until_it_is_used() -> None:
    async with running(repeat("x"), delay=0.001, max_num_seqs=1, max_queue=2) as rig:
        with rig.generator.permit("first", endpoint=ENDPOINT, n=2) as first:
            with rig.generator.permit("second", endpoint=ENDPOINT):
                error = await refusal(rig)
                assert (error.status, error.code) == (429, "overloaded")
                with pytest.raises(RequestError), rig.generator.permit("third", endpoint=ENDPOINT):
                    raise AssertionError("there was no room")
            with pytest.raises(KeyError), rig.generator.permit("fails", endpoint=ENDPOINT):
                raise KeyError
            neighbour = await rig.submit("p", max_tokens=50)  # the room is full again, and that of the permit is kept
            assert (await refusal(rig)).code == "overloaded"
            completions = await submitted(rig, first, permitted(rig, n=2))
            assert [completion.text for completion in completions] == ["x", "x"]
            with pytest.raises(ValueError, match="permit"):
                await submitted(rig, first, permitted(rig))
            await neighbour.aclose()
        await (await rig.submit("p", n=3, max_tokens=1)).collect()
        assert rig.sample("tuili_requests_refused_total", endpoint=ENDPOINT, reason="overloaded") == 3


async def test_prompts_of_one_request_run_all_or_none() -> None:
    async with running(repeat("x"), max_num_seqs=2, max_queue=1) as rig:
        with pytest.raises(RequestError), rig.generator.permit("many", endpoint=ENDPOINT, n=3) as permit:
            await submitted(rig, permit, permitted(rig), permitted(rig, "p" * 9999), permitted(rig))
        assert rig.client.in_flight == 0
        assert rig.ledger.records == []
        assert rig.sample("tuili_requests_refused_total", endpoint=ENDPOINT, reason="context_length_exceeded") == 1
        with rig.generator.permit("few", endpoint=ENDPOINT, n=3) as permit:
            await submitted(rig, permit, permitted(rig))
            await (await rig.submit("p", n=3, max_tokens=1)).collect()
        with rig.generator.permit("more", endpoint=ENDPOINT) as permit, pytest.raises(ValueError, match="permit"):
            await submitted(rig, permit, permitted(rig), permitted(rig))


async def test_what_was_let_in_is_served_while_the_server_drains() -> None:
    async with running(repeat("x")) as rig:
        with rig.generator.permit("early", endpoint=ENDPOINT) as permit:
            rig.client.drain()
            (completion,) = await submitted(rig, permit, permitted(rig, max_tokens=3))
        assert completion.text == "xxx"
        assert (await refusal(rig)).code == "engine_draining"


async def test_clients_that_leave_while_their_prompts_are_encoded_are_in_the_ledger() -> None:
    async with running(max_num_seqs=1, max_queue=0) as rig:

        async def encode() -> None:
            with rig.generator.permit("leaves", endpoint=ENDPOINT):
                await asyncio.Event().wait()

        task = asyncio.create_task(encode())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert rig.sample("tuili_requests_refused_total", endpoint=ENDPOINT, reason=CLIENT_LEFT) == 1
        await (await rig.submit("p", max_tokens=1)).collect()


async def test_draining_refuses_and_finishes() -> None:
    async with running(repeat("x"), delay=0.001) as rig:
        generation = await rig.submit("p", max_tokens=50)
        rig.client.drain()
        error = await refusal(rig)
        assert (error.status, error.code) == (503, "engine_draining")
        assert error.retry_after is not None
        assert (await generation.collect())[0].finish_reason is FinishReason.LENGTH
        await until(lambda: not rig.client.in_flight)
        assert rig.client.readiness()[0] is False


async def test_loading_refuses_with_503() -> None:
    rig = make_rig()
    error = await refusal(rig)
    assert (error.status, error.code) == (503, "engine_loading")
    assert error.retry_after is not None
    with pytest.raises(RequestError) as raised:
        _ = rig.generator.max_model_len
    assert raised.value.status == 503


def test_a_models_own_sampling_defaults_are_taken_over() -> None:
    config = {"temperature": 0.6, "top_p": 0.95, "top_k": None, "eos_token_id": 2, "do_sample": True}
    assert sampling_defaults(config) == {"temperature": 0.6, "top_p": 0.95}


# -- the ledger --------------------------------------------------------------------------------------------------


async def test_the_sum_over_requests_is_what_the_metrics_say() -> None:
    async with running(repeat(LYRICS), delay=0.001, max_num_seqs=4, max_queue=8) as rig:

        async def complete(index: int) -> None:
            await (
                await rig.submit("p" * (20 + index), n=1 + index % 2, max_tokens=20, stop=("wör",) if index % 3 else ())
            ).collect()

        async def leave(index: int) -> None:
            async with await rig.submit("p" * (20 + index), max_tokens=300) as generation:
                async for _ in generation:
                    return

        await asyncio.gather(*(complete(index) for index in range(4)), *(leave(index) for index in range(4)))
        await refusal(rig, "")
        records = rig.ledger.records
        assert len(records) == 8
        for metric, total in {
            "prompt_tokens_total": sum(record.usage.prompt_tokens for record in records),
            "generated_tokens_total": sum(record.generated_tokens for record in records),
            "delivered_tokens_total": sum(record.usage.completion_tokens for record in records),
            "cached_tokens_total": sum(record.usage.cached_tokens for record in records),
            "inter_token_latency_seconds_count": sum(len(record.token_intervals) for record in records),
        }.items():
            assert rig.sample(f"tuili_{metric}") == total, metric
        assert rig.sample("vllm:prompt_tokens_total") == rig.sample("tuili_prompt_tokens_total") > 0
        assert rig.sample("vllm:generation_tokens_total") == rig.sample("tuili_generated_tokens_total") > 0
        for reason in FinishReason:
            count = sum(record.finish_reasons.count(reason) for record in records)
            assert rig.sample("vllm:request_success_total", finished_reason=reason.value) == count
        outcomes = {
            outcome: rig.sample("tuili_requests_total", endpoint=ENDPOINT, outcome=outcome)
            for outcome in ("ok", "aborted")
        }
        assert outcomes == {"ok": 4, "aborted": 4}
        assert rig.sample("vllm:e2e_request_latency_seconds_count") == 8
