"""What a profile of decode steps is summed up to."""

from __future__ import annotations

from benchmarks.gpu.timeline import FIRST_KERNEL, Span, summary


def step(begin: float, gap_within: float = 0.0) -> list[Span]:
    """A step of 10 us of kernels, the last of which another one covers in part."""
    return [
        Span(FIRST_KERNEL, begin, begin + 1),
        Span("gemm", begin + 1 + gap_within, begin + 6 + gap_within),
        Span("gemm", begin + 6 + gap_within, begin + 10 + gap_within),
        Span("copy", begin + 8 + gap_within, begin + 9 + gap_within),
    ]


def test_gaps_lie_between_the_last_kernel_and_the_next_steps_first() -> None:
    spans = [Span("gemm", 0, 3), *step(5), *step(17), *step(57, gap_within=2), Span(FIRST_KERNEL, 70, 71)]
    row = summary(spans)
    assert row["profiled_steps"] == 3
    assert (row["gap_us_p50"], row["gap_us_max"]) == (2.0, 30.0)
    assert row["step_us"] == round((70 - 5) / 3, 1)
    assert row["kernels"]["gemm"] == {"us": 9.0, "calls": 2.0}
    assert list(row["kernels"]) == ["gemm", FIRST_KERNEL, "copy"]
    assert row["busy_share"] == round(3 * 10 / 65, 4)


def test_steps_that_overlap_have_no_gap_and_a_profile_without_steps_no_figures() -> None:
    assert summary([*step(0), *step(9.5), Span(FIRST_KERNEL, 30, 31)])["gap_us_p50"] == 5.2
    assert summary([Span("gemm", 0, 3)]) == {"profiled_steps": 0}
    assert summary([]) == {"profiled_steps": 0}
