from __future__ import annotations

from pathlib import Path

import pytest

from app.bounded import BoundedError, Bounds, run_bounded

SMALL = Bounds(memory=256 << 20, seconds=1)


def failure(source: str, *arguments: str) -> str:
    with pytest.raises(BoundedError) as caught:
        run_bounded(source, *arguments, bounds=SMALL)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_source_runs_with_its_arguments_and_this_process_modules(tmp_path: Path) -> None:
    source = "from pathlib import Path\nfrom app.version import __version__\nPath(sys.argv[1]).write_text(__version__)"
    run_bounded(source, str(tmp_path / "out"), bounds=SMALL)
    assert (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("raise ValueError('one\\n two')", "ValueError: one two"),
        ("class Panic(BaseException): pass\nraise Panic('x')", "Panic: x"),
        ("sys.exit('not this one')", "not this one"),
        ("sys.exit('möglich \\ud800 \\u2028')", "möglich ?"),
        ("print('noise')\nsys.stderr.write('noise')\nraise KeyError('k')", "KeyError: 'k'"),
        ("from app.checkpoints.header import WeightError\nraise WeightError('own words')", "own words"),
    ],
)
def test_whatever_is_raised_is_one_line(source: str, line: str) -> None:
    assert failure(source) == line


def test_a_message_has_a_length_of_our_choice() -> None:
    assert len(failure("raise ValueError('x' * 50_000_000)")) < 600


def test_a_crash_is_named() -> None:
    assert failure("import os\nos.abort()").startswith("crashes (SIGABRT)")


def test_an_exit_without_a_word() -> None:
    assert failure("import os\nos._exit(7)") == "ended with exit code 7"


def test_time_is_bounded() -> None:
    assert failure("while True: pass") == "takes more than 1 s of processor time"
    assert failure("import time\ntime.sleep(100)") == "takes more than 4 s"


def test_memory_is_bounded() -> None:
    assert failure("x = []\nwhile True: x.append(bytes(1 << 20))") == "takes more than 256 MiB of memory"
