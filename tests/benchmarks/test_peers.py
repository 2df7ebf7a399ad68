"""The side-by-side benchmark: exact prompts, workloads and their figures, processes, the report."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.bench.client import RequestResult
from app.bench.load import LoadRun
from benchmarks.peers.__main__ import main
from benchmarks.peers.catalogue import PEERS, Homes, OpenVino, TransformersServe, variable
from benchmarks.peers.install import RECIPES
from benchmarks.peers.process import PeerError, free_port, peak_resident_bytes, running
from benchmarks.peers.prompts import Cutter, PromptError, Sizes, reference_text, rounds
from benchmarks.peers.report import best, medians, notes, ratios
from benchmarks.peers.targets import WorkerTarget
from benchmarks.peers.workloads import WORKLOADS, warm_up

ROOT = Path(__file__).parents[2]
SMALL = Sizes(
    single=2, many=4, concurrency=2, prompt=7, output=3, long=31, prefix=9, suffix=4, shared=3, shared_output=2
)


def syllables(text: str) -> int:
    """A stand-in for a tokenizer: a word is a token for every three letters begun, so that cuts fall inside words."""
    return sum(-(-len(word) // 3) for word in text.split())


class TestPrompts:
    def test_text_is_prose_and_the_same_each_time(self) -> None:
        words = reference_text()
        assert words == reference_text()
        assert len(words) > 30_000

    def test_cuts_have_exactly_the_length(self) -> None:
        cutter = Cutter(reference_text(), syllables)
        assert [syllables(cutter.cut(n)) for n in (1, 2, 128, 1024)] == [1, 2, 128, 1024]

    def test_a_prefix_counts_and_is_kept(self) -> None:
        text = Cutter(reference_text(), syllables).cut(20, prefix="one two six")
        assert syllables(text) == 20
        assert text.startswith("one two six ")

    def test_impossible_length_is_refused(self) -> None:
        with pytest.raises(PromptError, match="exactly 3 tokens"):
            Cutter(["abcdefghi"], lambda text: 2 * syllables(text)).cut(3)

    def test_rounds_share_nothing_but_the_prefix_of_w4(self) -> None:
        made = rounds(reference_text(), syllables, SMALL)
        first, second = next(made), next(made)
        assert {syllables(text) for text in (*first.warmup, *first.single, *first.many)} == {SMALL.prompt}
        assert syllables(first.long) == SMALL.long
        assert {syllables(text) for text in first.shared} == {SMALL.prefix + SMALL.suffix}
        words = [text.split() for text in first.shared]
        prefix = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
        assert syllables(" ".join(column[0] for column in prefix)) >= SMALL.prefix
        texts = [t for r in (first, second) for t in (*r.warmup, *r.single, *r.many, r.long, r.shared[0])]
        beginnings = {text[:12] for text in texts}
        assert len(beginnings) == len(texts)


class FixedTarget:
    """Answers in simulated time: half a second to the first token, a tenth for each after."""

    def __init__(self, *, missing: int = 0) -> None:
        self.asked: list[tuple[int, int, int, int]] = []
        self._missing = missing

    def ask(self, prompts: Sequence[str], max_tokens: int, concurrency: int, prefix: int = 0) -> LoadRun:
        self.asked.append((len(prompts), max_tokens, concurrency, prefix))
        tokens = max_tokens - self._missing
        results = [
            RequestResult(
                index=index,
                scheduled=None,
                started=0.0,
                ttft=0.5,
                itl=[0.1] * (tokens - 1),
                tpot=0.1 if tokens > 1 else None,
                e2el=0.5 + 0.1 * (tokens - 1),
                input_tokens=syllables(text),
                output_tokens=tokens,
                has_usage=True,
            )
            for index, text in enumerate(prompts)
        ]
        return LoadRun(results, len(results), tokens * len(results), elapsed=2.0)


class TestWorkloads:
    def test_figures(self) -> None:
        prompts, target = next(rounds(reference_text(), syllables, SMALL)), FixedTarget()
        found = {name: workload(target, prompts, SMALL) for name, workload in WORKLOADS.items()}
        assert found["W1"]["decode_tok_s"] == pytest.approx(10.0)
        assert found["W1"]["ttft_ms"] == pytest.approx(500.0)
        assert found["W2"]["output_tok_s"] == pytest.approx(SMALL.many * SMALL.output / 2.0)
        assert found["W3"]["prompt_tok_s"] == pytest.approx(SMALL.long / 0.5)
        assert found["W4"]["wall_s"] == 2.0
        assert all(figures["notes"] == [] for figures in found.values())
        assert target.asked == [(2, 3, 1, 0), (4, 3, 2, 0), (1, 1, 1, 0), (3, 2, 3, 9)]

    def test_short_answers_are_noted(self) -> None:
        prompts = next(rounds(reference_text(), syllables, SMALL))
        figures = WORKLOADS["W1"](FixedTarget(missing=1), prompts, SMALL)
        assert figures["notes"] == ["answers of [2] tokens instead of 3"]

    def test_warm_up_asks_only_what_is_not_measured(self) -> None:
        prompts, target = next(rounds(reference_text(), syllables, SMALL)), FixedTarget()
        warm_up(target, prompts, SMALL)
        assert [asked[0] for asked in target.asked] == [1, SMALL.concurrency]


ECHO_WORKER = """
import sys, time
from benchmarks.peers.workers.protocol import serve
def load():
    print("chatter of a library")
    def generate(prompts, max_tokens, concurrency, prefix):
        print("more of it", flush=True)
        if prompts == [[0]]:
            sys.exit("out of cheese")
        now = time.perf_counter()
        return [now] * len(prompts), [[now + 0.25 * (i + 1) for i in range(max_tokens)] for _ in prompts]
    return "1.2", generate
serve(load)
"""


class TestProcesses:
    def test_worker_answers_through_the_chatter_of_its_libraries(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", ECHO_WORKER]
        with running(command, {"PYTHONPATH": str(ROOT)}, tmp_path / "log", piped=True) as child:
            target = WorkerTarget(child, lambda text: [len(word) for word in text.split()])
            assert target.start(60.0) == "1.2"
            (result,) = target.ask(["a bb ccc"], 3, 1).results
            assert result.input_tokens == result.output_tokens == 3
            assert result.ttft == pytest.approx(0.25)
            assert result.tpot == pytest.approx(0.25)
            assert child.note_memory() > 1 << 20
        assert child.process.poll() is not None

    def test_a_worker_that_dies_says_why(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", ECHO_WORKER]
        with running(command, {"PYTHONPATH": str(ROOT)}, tmp_path / "log", piped=True) as child:
            target = WorkerTarget(child, lambda _: [0])
            target.start(60.0)
            with pytest.raises(PeerError, match="out of cheese"):
                target.ask(["x"], 1, 1)

    def test_grandchildren_end_too_and_only_they(self, tmp_path: Path) -> None:
        bystander = subprocess.Popen(["sleep", "600"])
        try:
            with running(["sh", "-c", "sleep 600 & sleep 600; true"], {}, tmp_path / "log") as child:
                while len(child.pids) < 3:
                    time.sleep(0.01)
                pids = child.pids
            assert bystander.poll() is None
            assert not any(peak_resident_bytes(pid) for pid in pids)
        finally:
            bystander.kill()
            bystander.wait()

    def test_free_port_is_free(self) -> None:
        assert 1024 <= free_port() < 65536


class TestCatalogue:
    def test_names_are_unique_and_every_peer_can_be_installed(self) -> None:
        names = [peer.name for peer in PEERS]
        assert len(set(names)) == len(names)
        assert {peer.system for peer in PEERS} - {"tuili"} == set(RECIPES)

    def test_servers_listen_on_the_loopback_address(self, tmp_path: Path) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "llama-server").touch()
        homes = Homes(tmp_path, {variable(peer.system): str(tmp_path) for peer in PEERS})
        for peer in PEERS:
            command = peer.command(homes[peer.system], tmp_path, 12345)
            assert peer.in_process or "12345" in command
            assert "127.0.0.1" in command or peer.in_process or peer.system == "tuili"  # ours does by default

    def test_environment_names_a_directory(self, tmp_path: Path) -> None:
        homes = Homes(tmp_path, {"TUILI_PEER_LLAMA_CPP": "/elsewhere"})
        assert homes["llama.cpp"].directory == Path("/elsewhere")
        assert homes["openvino"].directory == tmp_path / "openvino"

    def test_what_is_not_there_has_no_version(self, tmp_path: Path) -> None:
        assert OpenVino("x", "openvino", "int8").version(Homes(tmp_path, {})["openvino"]) is None

    def test_transformers_is_told_the_length_in_its_own_way(self) -> None:
        body = TransformersServe("x", "transformers", "bf16").extra_body(5)
        assert json.loads(body["generation_config"])["min_new_tokens"] == 5


def row(name: str, workload: str, **figures: object) -> dict[str, object]:
    return {"name": name, "workload": workload, **figures}


class TestReport:
    ROWS = (
        *(row("ours", "W1", decode_tok_s=speed, ttft_ms=50.0) for speed in (90.0, 300.0, 200.0)),
        row("slow", "W1", decode_tok_s=100.0, ttft_ms=25.0),
        row("fast", "W1", decode_tok_s=400.0, ttft_ms=100.0, cached_tokens=7, foreign_load=0.5),
    )

    def test_medians_over_rounds(self) -> None:
        assert medians(self.ROWS)["ours"] == {"w1_decode_tok_s": 200.0, "w1_ttft_ms": 50.0}

    def test_a_ratio_above_one_means_that_ours_is_better(self) -> None:
        found = ratios(medians(self.ROWS), "ours")
        assert found["slow"] == {"w1_decode_tok_s": 2.0, "w1_ttft_ms": 0.5}
        assert found["fast"] == {"w1_decode_tok_s": 0.5, "w1_ttft_ms": 2.0}

    def test_best(self) -> None:
        assert best(medians(self.ROWS), ["slow", "fast", "absent"]) == {"w1_decode_tok_s": "fast", "w1_ttft_ms": "slow"}

    def test_cache_hits_and_noise_are_noted(self) -> None:
        cached, noisy = notes(self.ROWS)
        assert "fast, W1: 7 prompt tokens" in cached
        assert "50%" in noisy


class TestCommand:
    def test_what_is_not_installed_is_skipped_with_the_way_to_install_it(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(main, ["--venv-dir", str(tmp_path), "--only", "openvino-int8,vllm"])
        assert done.exit_code == 1
        assert "skipped openvino-int8: not installed (python -m benchmarks.peers install openvino)" in done.stderr
        assert "skipped vllm-bf16" in done.stderr
        assert "nothing to measure" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--only", "nobody"], "no such peer: nobody"),
            (["--workloads", "W1,W9"], "no such workload: W9"),
            (["--trial", "--save"], "--trial figures are not saved"),
        ],
    )
    def test_slips_are_refused_before_anything_starts(self, arguments: list[str], message: str) -> None:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert message in done.stderr

    def test_list_names_every_peer(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(main, ["--venv-dir", str(tmp_path), "list"])
        assert [line.split()[0] for line in done.stdout.splitlines()] == [peer.name for peer in PEERS]


@pytest.mark.slow
def test_pairs_of_a_checkout_with_itself(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.peers.pairs", str(ROOT), "--pairs", "2", "--starts", "1"]
    done = subprocess.run(
        [*command, "--workloads", "W1,W3", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["measure"] for row in rows].count("W3 ttft_ms") == 2
    assert {"start s", "W1 duration_s", "peak_rss_mb"} < {row["measure"] for row in rows}
    assert all(row["before"] > 0 and row["now"] > 0 for row in rows)
    assert "now / before" in done.stdout
