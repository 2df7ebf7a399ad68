"""Decode graphs: which sizes there are, and when a size is launched, recorded and replayed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.runner.graph import (
    Bucket,
    BucketGraphs,
    Work,
    graph_bytes,
    mixed_row_buckets,
    row_buckets,
    token_buckets,
)


class Device:
    """Counts; a recording replays what was recorded."""

    def __init__(self) -> None:
        self.computed = list[Bucket]()
        self.captures = 0

    def compute(self, bucket: Bucket) -> None:
        self.computed.append(bucket)

    def capture(self, work: Work) -> Work:
        self.captures += 1
        return work


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
    device = Device()
    graphs = BucketGraphs(device.compute, device.capture, max_rows=64, max_tokens=512, max_seq_len=8192)
    assert graphs.decodes(1) == decodes(1)
    assert graphs.decodes(9) == decodes(16)
    assert graphs.decodes(17) == decodes(32)
    assert graphs.decodes(33) == decodes(48)
    assert graphs.decodes(64) == decodes(64)
    assert graphs.decodes(65) is None


def test_a_bucket_of_prompts_has_a_row_for_the_tokens_that_pad_it() -> None:
    device = Device()
    graphs = BucketGraphs(device.compute, device.capture, max_rows=64, max_tokens=512, max_seq_len=8192)
    assert graphs.mixed(5, 1) == Bucket(16, 4, 16)
    assert graphs.mixed(15, 4) == Bucket(16, 16, 16)
    assert graphs.mixed(16, 4) == Bucket(16, 4, 16)
    assert graphs.mixed(257, 17) == Bucket(384, 64, 384)
    assert graphs.mixed(512, 64) == Bucket(512, 64, 512)
    assert graphs.mixed(511, 64) is None
    assert graphs.mixed(513, 1) is None
    short = BucketGraphs(device.compute, device.capture, max_rows=64, max_tokens=512, max_seq_len=100)
    assert short.mixed(258, 1) is None
    assert short.mixed(284, 1) == Bucket(384, 4, 384)


def test_sizes_of_prompts() -> None:
    assert mixed_row_buckets(256) == (4, 16, 64, 256)
    assert mixed_row_buckets(20) == (4, 16, 20)
    assert token_buckets(100) == (16, 32, 48, 64, 96, 100)
    sizes = token_buckets(1 << 20)
    assert sizes[-1] == 2048
    assert all(small < large <= max(32, 1.5 * small) for small, large in pairwise(sizes))


def test_launched_first_recorded_then_and_replayed_from_there_on() -> None:
    device = Device()
    graphs = BucketGraphs(device.compute, device.capture, max_rows=64, max_tokens=512, max_seq_len=8192)
    small, large = decodes(1), decodes(64)
    assert [graphs.run(bucket) for bucket in (small, large, small, small, large)] == [False, False, True, True, True]
    assert device.captures == 2
    assert device.computed == [small, large, small, small, large]


def test_what_failed_is_launched_again() -> None:
    """An error while launching or recording ends one step; the next is not taken for recorded."""
    device = Device()
    failures = [RuntimeError("launch"), None, RuntimeError("record")]

    def compute(bucket: Bucket) -> None:
        if failures and (error := failures.pop(0)):
            raise error
        device.compute(bucket)

    def capture(work: Work) -> Work:
        work()
        return work

    graphs = BucketGraphs(compute, capture, max_rows=1, max_tokens=16, max_seq_len=16)
    bucket = decodes(1)
    with pytest.raises(RuntimeError, match="launch"):
        graphs.run(bucket)
    assert graphs.run(bucket) is False
    with pytest.raises(RuntimeError, match="record"):
        graphs.run(bucket)
    assert graphs.run(bucket) is True


def test_without_memory_for_more_the_others_go_on_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    device = Device()

    def capture(work: Work) -> Work | None:
        return device.capture(work) if device.captures == 0 else None

    graphs = BucketGraphs(device.compute, capture, max_rows=4, max_tokens=16, max_seq_len=16)
    one, two, four = decodes(1), decodes(2), decodes(4)
    assert [graphs.run(bucket) for bucket in (one, one, two, two, two, four, four, one)] == [
        *(False, True, False, False, False, False, False, True)
    ]
    assert len(device.computed) == 8
    assert caplog.text.count("no memory for more graphs") == 1


def test_memory_is_planned_for_all_that_there_may_be() -> None:
    assert graph_bytes(32, 1, 16) == 32 * graph_bytes(1, 1, 16) > 1 << 20
    one = graph_bytes(1, 1, 16) // 2  # of decodes, and of prompts
    assert graph_bytes(1, 256, 16) == (20 + 4) * one
    assert graph_bytes(1, 256, 100) == (20 + 6 * 4) * one
