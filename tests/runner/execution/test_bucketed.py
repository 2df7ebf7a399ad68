"""Sizes that steps are padded to, and when a size is launched, recorded and replayed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from app.contract.step import StepPlan
from app.kernels.recorders import Work
from app.runner.execution.bucketed import BucketedExecutor
from app.runner.execution.buckets import Bucket, Buckets, mixed_row_buckets, row_buckets, token_buckets
from app.runner.sampler import SampleParts, StagedSamples
from tests.runner.steps import row_of, step_of

PLAIN = SampleParts(top_k=False, top_p=False, min_p=False, penalties=False, min_tokens=False, logit_bias=False)


class Device:
    """Buffers, kernels and recorder of a device that only counts; a recording replays what was recorded."""

    def __init__(self) -> None:
        self.computed = list[Bucket | None]()
        """None: a step at its own size."""
        self.staged = list[Bucket | None]()
        self.captures = 0

    def stage(self, _plan: StepPlan, _staged: StagedSamples, bucket: Bucket | None = None) -> None:
        self.staged.append(bucket)

    def compute(self, *_: object) -> None:
        self.computed.append(None)

    def compute_bucket(self, bucket: Bucket, _max_seq_len: int, _parts: SampleParts) -> None:
        self.computed.append(bucket)

    def record(self, work: Work) -> Work | None:
        self.captures += 1
        return work


def executor_of(device: Device, max_rows: int = 64, max_tokens: int = 512) -> BucketedExecutor:
    buckets = Buckets(max_rows=max_rows, max_tokens=max_tokens, max_seq_len=8192)
    return BucketedExecutor(device, device, buckets, num_layers=1)  # type: ignore[arg-type]


def run(executor: BucketedExecutor, *lengths: int, parts: SampleParts = PLAIN) -> bool:
    """A step of rows of so many tokens, each sampled; whether it was replayed."""
    rows = [row_of(slot, 0, [1] * length) for slot, length in enumerate(lengths)]
    sampled = list(range(len(rows)))
    ends = np.arange(1, len(rows) + 1)
    staged = StagedSamples(
        rows=rows,
        slots=ends,
        ends=ends,
        sampled=sampled,
        drafts={},
        parts=parts,
        recordable=parts,
        reported=[],
        masked_below=0,
    )
    return executor.run(step_of(rows), staged).replayed


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, (1,)), (3, (1, 2, 3)), (16, (1, 2, 4, 8, 16)), (40, (1, 2, 4, 8, 16, 32, 40)), (1000, row_buckets(256))],
)
def test_row_buckets(most: int, sizes: tuple[int, ...]) -> None:
    assert row_buckets(most) == sizes


def test_the_largest_buckets() -> None:
    assert row_buckets(256)[-3:] == (224, 240, 256)


def decodes(rows: int) -> Bucket:
    return Bucket(rows, rows, 1)


def test_a_bucket_holds_its_step_and_the_next_smaller_does_not() -> None:
    buckets = Buckets(max_rows=64, max_tokens=512, max_seq_len=8192)
    assert buckets.decodes(1) == decodes(1)
    assert buckets.decodes(9) == decodes(16)
    assert buckets.decodes(17) == decodes(32)
    assert buckets.decodes(33) == decodes(48)
    assert buckets.decodes(64) == decodes(64)
    assert buckets.decodes(65) is None


def test_a_bucket_of_prompts_has_a_row_for_the_tokens_that_pad_it() -> None:
    buckets = Buckets(max_rows=64, max_tokens=512, max_seq_len=8192)
    assert buckets.mixed(5, 1) == Bucket(16, 4, 16)
    assert buckets.mixed(15, 4) == Bucket(16, 16, 16)
    assert buckets.mixed(16, 4) == Bucket(16, 4, 16)
    assert buckets.mixed(257, 17) == Bucket(384, 64, 384)
    assert buckets.mixed(512, 64) == Bucket(512, 64, 512)
    assert buckets.mixed(511, 64) is None
    assert buckets.mixed(513, 1) is None
    short = Buckets(max_rows=64, max_tokens=512, max_seq_len=100)
    assert short.mixed(258, 1) is None
    assert short.mixed(284, 1) == Bucket(384, 4, 384)


def test_a_step_runs_in_its_bucket_or_at_its_own_size() -> None:
    device = Device()
    executor = executor_of(device)
    for lengths in ([1], [1] * 9, [3, 1], [500, 13]):
        run(executor, *lengths)
    run(executor, 1, parts=replace(PLAIN, penalties=True))
    expected = [decodes(1), decodes(16), Bucket(16, 4, 16), None, None]
    assert device.staged == device.computed == expected


def test_sizes_of_prompts() -> None:
    assert mixed_row_buckets(256) == (4, 16, 64, 256)
    assert mixed_row_buckets(20) == (4, 16, 20)
    assert token_buckets(100) == (16, 32, 48, 64, 96, 100)
    sizes = token_buckets(1 << 20)
    assert sizes[-1] == 2048
    assert all(small < large <= max(32, 1.5 * small) for small, large in pairwise(sizes))


def test_launched_first_recorded_then_and_replayed_from_there_on() -> None:
    device = Device()
    executor = executor_of(device)
    small, large = 1, 64
    assert [run(executor, *[1] * rows) for rows in (small, large, small, small, large)] == [
        *(False, False, True, True, True)
    ]
    assert device.captures == 2
    assert device.computed == [decodes(rows) for rows in (small, large, small, small, large)]


def test_what_failed_is_launched_again() -> None:
    """An error while launching or recording ends one step; the next is not taken for recorded."""
    failures = [RuntimeError("launch"), None, RuntimeError("record")]

    class Failing(Device):
        def compute_bucket(self, bucket: Bucket, max_seq_len: int, parts: SampleParts) -> None:
            if failures and (error := failures.pop(0)):
                raise error
            super().compute_bucket(bucket, max_seq_len, parts)

        def record(self, work: Work) -> Work | None:
            work()
            return super().record(work)

    executor = executor_of(Failing(), max_rows=1, max_tokens=16)
    with pytest.raises(RuntimeError, match="launch"):
        run(executor, 1)
    assert run(executor, 1) is False
    with pytest.raises(RuntimeError, match="record"):
        run(executor, 1)
    assert run(executor, 1) is True


def test_without_memory_for_more_the_others_go_on_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    class Small(Device):
        def record(self, work: Work) -> Work | None:
            return super().record(work) if self.captures == 0 else None

    device = Small()
    executor = executor_of(device, max_rows=4, max_tokens=16)
    assert [run(executor, *[1] * rows) for rows in (1, 1, 2, 2, 2, 4, 4, 1)] == [
        *(False, True, False, False, False, False, False, True)
    ]
    assert len(device.computed) == 8
    assert caplog.text.count("no memory for more graphs") == 1


def test_memory_is_planned_for_all_that_there_may_be() -> None:
    def nbytes(num_layers: int, max_rows: int, max_tokens: int) -> int:
        return Buckets(max_rows=max_rows, max_tokens=max_tokens, max_seq_len=16).nbytes(num_layers)

    assert nbytes(32, 1, 16) == 32 * nbytes(1, 1, 16) > 1 << 20
    one = nbytes(1, 1, 16) // 2  # of decodes, and of prompts
    assert nbytes(1, 256, 16) == (20 + 4) * one
    assert nbytes(1, 256, 100) == (20 + 6 * 4) * one
