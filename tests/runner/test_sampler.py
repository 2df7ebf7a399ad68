from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.contract.request import SamplingParams
from app.contract.step import RowOutput, ScheduledRow, SlotInit
from app.runner.errors import RunnerError
from app.runner.sampler import Sampler
from tests.kernels import sampling_oracle as oracle
from tests.kernels.util import randn
from tests.runner.masks import FixedMasks, StackedMasks
from tests.runner.steps import GREEDY, row_of, slot_of

VOCAB = 97
CPU = torch.device("cpu")


def language(tokens: Sequence[int], vocab_size: int = VOCAB) -> Tensor:
    """Logits [V] that hang on the last token and the length, as a model's would."""
    return randn(vocab_size, seed=tokens[-1] * 1000 + len(tokens)) * 2


@dataclass
class Text:
    """A request that a test drives by hand."""

    prompt: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    sample_index: int = 0
    stop_token_ids: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def bind(self, slot: int) -> SlotInit:
        return SlotInit(
            slot=slot,
            sampling=self.params,
            seed=self.seed,
            sample_index=self.sample_index,
            prompt_len=len(self.prompt),
            stop_token_ids=self.stop_token_ids,
            prompt_token_ids=self.prompt,
            output_token_ids=list(self.outputs),
        )

    def logits(self) -> Tensor:
        return language(self.prompt + self.outputs)

    def row(self, slot: int) -> ScheduledRow:
        return row_of(slot, len(self.prompt) + len(self.outputs) - 1, None)

    def expected(self, count: int) -> list[int]:
        """The next ``count`` tokens by definition."""
        outputs, params = list(self.outputs), self.params
        for _ in range(count):
            row = oracle.Row(
                seed=self.seed & (1 << 64) - 1,
                position=len(self.prompt) + len(outputs),
                sample_index=self.sample_index,
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
                min_p=params.min_p,
                repetition=params.repetition_penalty,
                presence=params.presence_penalty,
                frequency=params.frequency_penalty,
                prompt=self.prompt,
                output=outputs,
                banned=self.stop_token_ids if len(outputs) < params.min_tokens else [],
                bias=params.logit_bias,
            )
            outputs.append(oracle.token(language(self.prompt + outputs).tolist(), row))
        return outputs[len(self.outputs) :]


def generate(sampler: Sampler, texts: dict[int, Text], count: int) -> None:
    """``count`` decode steps of the requests in their slots."""
    for _ in range(count):
        logits = torch.stack([text.logits() for text in texts.values()])
        rows = [text.row(slot) for slot, text in texts.items()]
        outputs = sampler.sample(logits, rows).result()
        for text, output in zip(texts.values(), outputs, strict=True):
            text.outputs += output.token_ids


def sample_once(sampler: Sampler, logits: Tensor, rows: list[ScheduledRow]) -> list[RowOutput]:
    return sampler.sample(logits, rows).result()


PARAMS = [
    GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.9),
    SamplingParams(temperature=1.3, min_p=0.05),
    SamplingParams(repetition_penalty=1.4),
    SamplingParams(temperature=0.0, presence_penalty=1.1, frequency_penalty=0.7),
    SamplingParams(temperature=0.5, frequency_penalty=-0.3, logit_bias={3: 4.0, 50: -100.0}),
    SamplingParams(temperature=0.8, min_tokens=6, logit_bias={7: 5.0}),
    SamplingParams(top_k=2**64 - 1, logit_bias={3: 2}),
]


def texts_of(params: Sequence[SamplingParams]) -> list[Text]:
    return [
        Text(
            prompt=[5, 9 + i, 5, 30], params=p, seed=(-1) ** i * (i << 40 | 17), sample_index=i % 3, stop_token_ids=[7]
        )
        for i, p in enumerate(params)
    ]


@pytest.mark.parametrize("params", PARAMS)
def test_a_text_alone_is_that_of_the_definition(params: SamplingParams) -> None:
    (text,) = texts_of([params])
    expected = text.expected(20)
    sampler = Sampler(3, VOCAB, CPU)
    sampler.bind([text.bind(1)])
    generate(sampler, {1: text}, 20)
    assert text.outputs == expected


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_texts_hang_on_nothing_but_their_request(data: st.DataObject) -> None:
    """Any slots, any company, joining and leaving at any time, preempted and resumed anywhere: the same tokens."""
    texts = texts_of(data.draw(st.permutations(PARAMS)))
    expected = [text.expected(12) for text in texts]
    sampler, running, free = Sampler(4, VOCAB, CPU), dict[int, Text](), [3, 1, 0, 2]
    waiting = list(texts)
    while waiting or running:
        while waiting and free and (not running or data.draw(st.booleans())):
            slot, text = free.pop(), waiting.pop(0)
            sampler.bind([text.bind(slot)])
            running[slot] = text
        generate(sampler, running, 1)
        for slot, text in list(running.items()):
            if len(text.outputs) == 12:
                del running[slot]
            elif data.draw(st.integers(0, 9)) == 0:  # preempted
                waiting.append(running.pop(slot))
            else:
                continue
            free.append(slot)
    assert [text.outputs for text in texts] == expected


def test_last_token_is_what_the_next_step_reads() -> None:
    sampler = Sampler(4, VOCAB, CPU)
    sampler.bind([slot_of(3, [1]), slot_of(0, [1])])
    logits = torch.zeros(2, VOCAB)
    logits[0, 40], logits[1, 50] = 1.0, 1.0
    address = sampler.last_token.data_ptr()
    sampler.sample(logits, [row_of(3, 0, None), row_of(0, 0, None)])
    assert sampler.last_token.tolist() == [50, 0, 0, 40]
    assert sampler.last_token.data_ptr() == address


def test_a_result_is_not_touched_by_later_steps() -> None:
    params = SamplingParams(temperature=0.0, logprobs=2)
    sampler = Sampler(2, VOCAB, CPU)
    sampler.bind([slot_of(0, [1], params), slot_of(1, [1], params)])
    rows = [row_of(0, 0, None), row_of(1, 0, None)]
    logits = randn(2, VOCAB)
    expected = sample_once(sampler, logits, rows)
    pending = sampler.sample(logits, rows)
    logits.copy_(randn(2, VOCAB, seed=9))
    later = sample_once(sampler, logits, rows)
    assert pending.result() == expected
    assert later != expected


def test_a_slot_forgets_its_last_request() -> None:
    heavy = SamplingParams(
        temperature=0.0, repetition_penalty=3.0, presence_penalty=9.0, min_tokens=50, logit_bias={1: 100.0}
    )
    first = Text([4, 8], heavy, stop_token_ids=list(range(2, 90)))
    second = Text([4, 8], SamplingParams(temperature=0.0, frequency_penalty=0.01, min_tokens=2, logit_bias={2: 0.5}))
    expected = second.expected(8)
    sampler = Sampler(2, VOCAB, CPU)
    sampler.bind([first.bind(1)])
    generate(sampler, {1: first}, 8)
    sampler.bind([second.bind(1)])
    generate(sampler, {1: second}, 8)
    assert second.outputs == expected


def test_min_tokens_holds_back_every_stop_token() -> None:
    text = Text(
        [1], SamplingParams(temperature=0.0, min_tokens=3, logit_bias={7: 90.0, 8: 95.0}), stop_token_ids=[7, 8]
    )
    sampler = Sampler(1, VOCAB, CPU)
    sampler.bind([text.bind(0)])
    generate(sampler, {0: text}, 4)
    assert not {7, 8} & set(text.outputs[:3])
    assert text.outputs[3] == 8


# -- rows -----------------------------------------------------------------------------------------------------------


def test_rows_find_their_logits_whatever_their_kind() -> None:
    """A chunk in mid-prompt without logits, a prompt with logprobs, a decode and a prompt's last chunk in one step."""
    sampler = Sampler(4, VOCAB, CPU)
    reporting = SamplingParams(temperature=0.0, prompt_logprobs=1, logprobs=0)
    sampler.bind([slot_of(0, [1]), slot_of(1, [1, 2, 3], reporting), slot_of(2, [1]), slot_of(3, [1] * 9)])
    logits = randn(5, VOCAB)
    rows = [
        row_of(0, 0, [1, 1], num_samples=0),
        row_of(1, 0, [1, 2, 3], targets=[2, 3]),
        row_of(2, 5, None),
        row_of(3, 4, [1] * 5),
    ]
    outputs = sample_once(sampler, logits, rows)
    greedy, logprobs = logits.argmax(-1).tolist(), logits.log_softmax(-1)
    assert [output.token_ids for output in outputs] == [[], [greedy[2]], [greedy[3]], [greedy[4]]]
    assert [output.error for output in outputs] == [None] * 4
    prompt = outputs[1].prompt_logprobs
    assert prompt is not None
    assert [report.token_id for report in prompt] == [2, 3]
    assert [report.logprob for report in prompt] == pytest.approx([float(logprobs[0, 2]), float(logprobs[1, 3])])
    assert [[token for token, _ in report.top] for report in prompt] == [[greedy[0]], [greedy[1]]]
    own = outputs[1].logprobs
    assert own is not None
    assert [(report.token_id, report.rank, report.top) for report in own] == [(greedy[2], 1, [])]
    assert all(outputs[i].prompt_logprobs is None and outputs[i].logprobs is None for i in (0, 2, 3))


def test_a_chunk_of_a_prompt_reports_without_sampling() -> None:
    sampler = Sampler(2, VOCAB, CPU)
    sampler.bind([slot_of(0, [1] * 9, SamplingParams(temperature=0.0, prompt_logprobs=0, logprobs=3))])
    (output,) = sample_once(sampler, randn(2, VOCAB), [row_of(0, 0, [1, 1], num_samples=0, targets=[1, 1])])
    assert output.token_ids == []
    assert output.logprobs is None
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 2


def test_logprobs_are_those_of_the_raw_logits() -> None:
    params = SamplingParams(temperature=0.3, logit_bias={11: 100.0}, repetition_penalty=1.5, logprobs=4)
    sampler = Sampler(1, VOCAB, CPU)
    sampler.bind([slot_of(0, [1, 2], params)])
    logits = randn(1, VOCAB)
    (output,) = sample_once(sampler, logits, [row_of(0, 1, None)])
    assert output.token_ids == [11]
    assert output.logprobs is not None
    (report,) = output.logprobs
    exact = logits[0].double().log_softmax(-1)
    assert report.logprob == pytest.approx(float(exact[11]))
    assert report.rank == 1 + int((logits[0] > logits[0, 11]).sum())
    assert [token for token, _ in report.top] == exact.argsort(descending=True)[:4].tolist()


def test_each_row_gets_its_own_number_of_alternatives() -> None:
    wanted = [2, None, 0, 5, None, VOCAB + 10]
    sampler = Sampler(6, VOCAB, CPU)
    sampler.bind([slot_of(i, [1], SamplingParams(temperature=0.0, logprobs=k)) for i, k in enumerate(wanted)])
    logits = randn(6, VOCAB)
    outputs = sample_once(sampler, logits, [row_of(i, 0, None) for i in range(6)])
    numbers = [None if output.logprobs is None else len(output.logprobs[0].top) for output in outputs]
    assert numbers == [2, None, 0, 5, None, VOCAB]
    for output in outputs:
        if output.logprobs and output.logprobs[0].top:
            # The greedy token stands in its own list with the identical float.
            assert output.logprobs[0].top[0] == (output.token_ids[0], output.logprobs[0].logprob)


# -- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(logprobs=1), SamplingParams(top_p=0.5, presence_penalty=1.0)]
)
def test_non_finite_logits_fail_their_row_alone(params: SamplingParams) -> None:
    sampler = Sampler(3, VOCAB, CPU)
    bindings = [slot_of(i, [1], params, seed=i) for i in range(3)]
    rows, logits = [row_of(i, 0, None) for i in range(3)], randn(3, VOCAB)
    sampler.bind(bindings)
    sound = sample_once(sampler, logits, rows)
    logits[1, 5] = math.nan
    sampler.bind(bindings)
    outputs = sample_once(sampler, logits, rows)
    assert outputs[1].error is not None
    assert "not finite" in outputs[1].error
    assert outputs[1].token_ids == []
    assert outputs[1].logprobs is None
    assert [outputs[0], outputs[2]] == [sound[0], sound[2]]


def test_non_finite_prompt_logits_fail_their_row_alone() -> None:
    params = SamplingParams(temperature=0.0, prompt_logprobs=1)
    sampler = Sampler(2, VOCAB, CPU)
    sampler.bind([slot_of(i, [1, 2, 3], params) for i in range(2)])
    logits = randn(6, VOCAB)
    logits[1, 0] = math.nan
    outputs = sample_once(sampler, logits, [row_of(i, 0, [1, 2, 3], targets=[2, 3]) for i in range(2)])
    assert outputs[0].error == "the logits of a prompt token are not finite"
    assert outputs[0].token_ids == []
    assert outputs[1].error is None
    assert len(outputs[1].token_ids) == 1


UNCOUNTED = [
    *PARAMS[:4],
    SamplingParams(temperature=0.8, min_tokens=6, logit_bias={7: 5.0}),
    SamplingParams(temperature=0.9, logprobs=2),
]


def with_drafts(text: Text, slot: int, drafts: list[int]) -> tuple[ScheduledRow, Tensor]:
    """A row that verifies drafts, and its logits: each position's are those of the text up to it."""
    known = text.prompt + text.outputs
    row = row_of(slot, len(known) - 1, [known[-1], *drafts], num_samples=1 + len(drafts))
    return row, torch.stack([language(known + drafts[:count]) for count in range(1 + len(drafts))])


@pytest.mark.parametrize("right", [0, 1, 3])
def test_a_draft_holds_while_it_is_what_its_position_draws(right: int) -> None:
    """Three drafts a row, the first few right, beside rows of one sample: every request says what it says alone."""
    texts = dict(enumerate(texts_of([*UNCOUNTED, SamplingParams(repetition_penalty=1.4)])))
    sampler = Sampler(len(texts), VOCAB, CPU, max_samples=40)
    sampler.bind([text.bind(slot) for slot, text in texts.items()])
    counted = len(texts) - 1
    while len(texts[0].outputs) < 12:
        rows, logits, expected = [], [], []
        for slot, text in texts.items():
            truth = text.expected(4)
            drafts = [token if n < right else (token + 1) % VOCAB for n, token in enumerate(truth[:3])]
            row, own = with_drafts(text, slot, [] if slot == counted else drafts)
            rows.append(row)
            logits.append(own)
            expected.append(truth[:1] if slot == counted else truth[: 1 + right])
        for text, output, tokens in zip(
            texts.values(), sample_once(sampler, torch.cat(logits), rows), expected, strict=True
        ):
            assert output.token_ids == tokens
            if text.params.logprobs is not None:
                assert output.logprobs is not None
                assert [report.token_id for report in output.logprobs] == tokens
            text.outputs += output.token_ids


def test_logits_behind_a_wrong_draft_may_be_anything() -> None:
    sampler = Sampler(2, VOCAB, CPU, max_samples=6)
    texts = dict(enumerate(texts_of([GREEDY, GREEDY])))
    sampler.bind([text.bind(slot) for slot, text in texts.items()])
    right, wrong = [(texts[slot].expected(1)[0] + slot) % VOCAB for slot in range(2)]
    (first, own), (second, other) = with_drafts(texts[0], 0, [right, 5]), with_drafts(texts[1], 1, [wrong, 5])
    own[1, 3] = other[1, 3] = math.nan
    outputs = sample_once(sampler, torch.cat([own, other]), [first, second])
    assert outputs[0].error is not None
    assert outputs[1].error is None
    assert outputs[1].token_ids == texts[1].expected(1)


@pytest.mark.parametrize(
    "neighbour", [SamplingParams(), SamplingParams(frequency_penalty=1.0), SamplingParams(min_tokens=9)]
)
def test_each_position_behind_a_draft_has_a_mask_of_its_own(neighbour: SamplingParams) -> None:
    """The row between two without masks; a mask lets one token come, or none."""
    texts = dict(enumerate(texts_of([SamplingParams(), SamplingParams(), neighbour])))
    sampler = Sampler(len(texts), VOCAB, CPU, max_samples=8)
    sampler.bind([text.bind(slot) for slot, text in texts.items()])
    plain = texts[2].expected(2)
    for only, drafts, expected in (
        ([11, 12, 13], [11, 12], [11, 12, 13]),
        ([11, 12, 13], [11, 50], [11, 12]),
        ([11, 12, None], [11, 50], [11, 12]),
        ([11, None, 13], [11, 12], None),
    ):
        pairs = [with_drafts(texts[0], 0, [3]), with_drafts(texts[1], 1, drafts), with_drafts(texts[2], 2, [])]
        masks = StackedMasks([(1, [] if token is None else [token]) for token in only], VOCAB)
        logits = torch.cat([own for _, own in pairs])
        outputs = sampler.sample(logits, [row for row, _ in pairs], masks).result()
        assert outputs[0].token_ids[:1] == texts[0].expected(1)
        assert outputs[2].token_ids == plain[:1]
        assert outputs[1].token_ids == (expected or [])
        assert (outputs[1].error is None) == (expected is not None)
        sampler.bind([text.bind(slot) for slot, text in texts.items()])
    outputs = sample_once(sampler, texts[1].logits()[None], [texts[1].row(1)])
    assert outputs[0].token_ids == texts[1].expected(1)


def test_drafts_that_penalties_would_count_are_refused() -> None:
    sampler = Sampler(1, VOCAB, CPU, max_samples=4)
    sampler.bind([slot_of(0, [1], SamplingParams(presence_penalty=1.0))])
    with pytest.raises(RunnerError, match="slot 0 has penalties"):
        sampler.sample(randn(2, VOCAB), [row_of(0, 0, [1, 2], num_samples=2)])


def test_drafts_with_masks_and_a_bias_are_refused() -> None:
    sampler = Sampler(1, VOCAB, CPU, max_samples=4)
    sampler.bind([slot_of(0, [1], SamplingParams(logit_bias={3: 1.0}))])
    masks = StackedMasks([(0, [1]), (0, [2])], VOCAB)
    with pytest.raises(RunnerError, match="slot 0 has masks and a bias"):
        sampler.sample(randn(2, VOCAB), [row_of(0, 0, [1, 2], num_samples=2)], masks)


def test_more_samples_than_there_is_room_for_are_refused() -> None:
    sampler = Sampler(1, VOCAB, CPU)
    sampler.bind([slot_of(0, [1])])
    with pytest.raises(RunnerError, match="a step of 2 samples, the buffers hold 1"):
        sampler.sample(randn(2, VOCAB), [row_of(0, 0, [1, 2], num_samples=2)])


def test_targets_that_do_not_match_the_positions_are_refused() -> None:
    sampler = Sampler(1, VOCAB, CPU)
    sampler.bind([slot_of(0, [1])])
    with pytest.raises(RunnerError, match="slot 0 has 2 positions for 1 logprob targets"):
        sampler.sample(randn(3, VOCAB), [row_of(0, 0, [1, 2, 3], num_logits=3, targets=[2])])


def test_a_mask_binds_its_slot_alone_and_its_step_alone() -> None:
    sampler, plain = Sampler(4, VOCAB, CPU), Sampler(4, VOCAB, CPU)
    inits = [slot_of(slot, [1, 2], SamplingParams(temperature=1.0), seed=slot) for slot in range(3)]
    logits, rows = randn(3, VOCAB), [row_of(slot, 1, None) for slot in range(3)]
    sampler.bind(inits)
    plain.bind(inits)
    free = [output.token_ids for output in sample_once(plain, logits, rows)]
    masked = sampler.sample(logits, rows, FixedMasks({1: [40, 96]}, VOCAB)).result()
    assert masked[1].token_ids[0] in (40, 96)
    assert [masked[0].token_ids, masked[2].token_ids] == [free[0], free[2]]
    assert [output.token_ids for output in sample_once(sampler, logits, rows)] == free


def test_a_row_whose_mask_is_empty_fails_alone() -> None:
    sampler = Sampler(4, VOCAB, CPU)
    sampler.bind([slot_of(slot, [1, 2], GREEDY) for slot in range(2)])
    rows = [row_of(slot, 1, None) for slot in range(2)]
    empty, other = sampler.sample(randn(2, VOCAB), rows, FixedMasks({0: []}, VOCAB)).result()
    assert empty.error is not None
    assert other.error is None


def test_a_slot_that_is_bound_anew_is_not_masked_beside_one_that_is() -> None:
    sampler = Sampler(4, VOCAB, CPU)
    rows = [row_of(slot, 1, None) for slot in range(2)]
    logits = randn(2, VOCAB)
    sampler.bind([slot_of(slot, [1, 2], GREEDY) for slot in range(2)])
    sampler.sample(logits, rows, FixedMasks({0: [7], 1: [8]}, VOCAB)).result()
    sampler.bind([slot_of(0, [1, 2], GREEDY)])
    free, masked = sampler.sample(logits, rows, FixedMasks({1: [9]}, VOCAB)).result()
    assert free.token_ids == [int(logits[0].argmax())]
    assert masked.token_ids == [9]


@pytest.mark.parametrize("bias", [{}, {30: -100.0, 60: 3.0}])
def test_only_allowed_tokens_are_sampled(bias: dict[int, float]) -> None:
    sampler = Sampler(4, VOCAB, CPU)
    params = SamplingParams(temperature=5.0, allowed_token_ids=(30, 60, 90), logit_bias=bias)
    sampler.bind([slot_of(0, [1, 2], params, seed=3), slot_of(1, [1, 2], GREEDY)])
    logits = randn(2, VOCAB)
    seen = set()
    for position in range(1, 60):
        row, other = sample_once(sampler, logits, [row_of(0, position, None), row_of(1, position, None)])
        seen.update(row.token_ids)
        assert other.token_ids == [int(logits[1].argmax())]
    assert seen == ({60, 90} if bias else {30, 60, 90})
    sampler.bind([slot_of(0, [1, 2], GREEDY)])
    assert sample_once(sampler, logits, [row_of(0, 1, None)])[0].token_ids == [int(logits[0].argmax())]
