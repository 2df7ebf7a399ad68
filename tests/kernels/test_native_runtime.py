"""The native library's runtime under stress, what it exports, and what recording promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError, Mode
from app.kernels.embed import embed
from app.kernels.native import library
from app.kernels.native.program import Program
from app.kernels.sample import record_tokens
from tests.kernels.util import poisoned, randn

HERE = Path(__file__).parent
needs_kernels = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = (dispatch._state.mode, dispatch._state.threads, dispatch._state.isa)
    yield
    dispatch.configure(*before)


@needs_compiler
@pytest.mark.parametrize(("flags", "steps"), [(["-O2"], 500), (["-O1", "-g", "-fsanitize=thread"], 300)])
def test_random_programs_give_what_their_ops_give_in_turn(flags: list[str], steps: int, tmp_path: Path) -> None:
    """One to four threads, also where the count of steps overflows; ThreadSanitizer finds no race."""
    driver = tmp_path / "stress"
    source = HERE / "native" / "stress.cpp"
    subprocess.run(["g++", "-std=c++17", *flags, "-pthread", str(source), "-o", str(driver)], check=True, timeout=60)
    done = subprocess.run([str(driver), str(steps)], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (0, "sound\n", "")


@needs_kernels
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_the_library_exports_its_own_names_alone() -> None:
    """A shared or weak symbol might be the copy that an older machine cannot run."""
    lib = str(library.library()._name)
    lines = subprocess.run(["nm", "-D", "--defined-only", lib], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in lines.splitlines()]
    assert names
    assert [name for name in names if not name.startswith("tuili_")] == []


def test_without_a_compiler_it_installs_without_kernels_and_says_so(tmp_path: Path) -> None:
    root = HERE.parents[1]
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(
        root / "app", tmp_path / "app", ignore=lambda _, names: [n for n in names if n.endswith((".so", ".pyc"))]
    )
    environment = {name: value for name, value in os.environ.items() if name != "TUILI_REQUIRE_NATIVE"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"CC": "false", "CXX": "false"}, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert "installing without native CPU kernels" in done.stdout + done.stderr
    assert not list((tmp_path / "app/kernels/native").glob("*.so"))
    required = environment | {"CC": "false", "CXX": "false", "TUILI_REQUIRE_NATIVE": "1"}
    assert subprocess.run(command, cwd=tmp_path, env=required, capture_output=True, timeout=60).returncode != 0


@needs_kernels
def test_what_follows_an_empty_op_is_run() -> None:
    """A step without rows of one kind, then a row-wise op of few rows of another."""
    dispatch.configure(Mode.STRICT, 2)
    ids, slots = torch.tensor([2, 1]), torch.zeros(2, dtype=torch.int64)
    table, out = randn(4, 8), poisoned(2, 8)
    with dispatch.recording() as calls:
        record_tokens(ids, slots, torch.zeros(1, dtype=torch.int64))
        embed(ids, table, out)
    Program(dispatch.pool(), calls).run(tokens=2, samples=0)
    assert torch.equal(out, table[ids])


@needs_kernels
def test_a_recording_runs_nothing_and_takes_every_call() -> None:
    dispatch.configure(Mode.AUTO, 1)
    last, ids = torch.zeros(2, dtype=torch.int64), torch.tensor([7])
    slot = torch.tensor([1])
    with dispatch.recording() as calls:
        record_tokens(ids, slot, last)
        with pytest.raises(RuntimeError, match="under way already"), dispatch.recording():
            pass
        record_tokens(ids, slot, last)
    assert last.tolist() == [0, 0]
    assert [call.name for call in calls] == ["record", "record"]
    record_tokens(ids, slot, last)
    assert last.tolist() == [0, 7]


@needs_kernels
def test_strict_mode_and_recordings_allow_no_plain_torch() -> None:
    ids = torch.zeros(1, dtype=torch.int64)
    half = randn(4, 8, dtype=torch.float16)
    dispatch.configure(Mode.STRICT, 1)
    with pytest.raises(FallbackError, match="strict allows no plain torch"):
        embed(ids, half, poisoned(1, 8, dtype=torch.float16))
    dispatch.configure(Mode.AUTO, 1)
    embed(ids, half, poisoned(1, 8, dtype=torch.float16))
    with pytest.raises(FallbackError, match="cannot be recorded"), dispatch.recording():
        embed(ids, half, poisoned(1, 8, dtype=torch.float16))
    dispatch.configure(Mode.REFERENCE, 1)
    assert not dispatch.native("embed", half)
