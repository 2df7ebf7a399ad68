"""`tuili run` as a user types it: a server comes and goes with the conversation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from app.cli import main
from app.serve.child import serve_arguments
from tests.byte_tokenizer import CHATML_TEMPLATE, VOCAB_SIZE, write_byte_tokenizer
from tests.store.tiny import CONFIG, write_json

SMALL = (
    "--load-format",
    "dummy",
    "--dtype",
    "float32",
    "--kernels",
    "reference",
    "--kv-cache-memory",
    "1MiB",
    "--max-tokens",
    "4",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "tiny"
    directory.mkdir()
    write_json(directory / "config.json", CONFIG | {"vocab_size": VOCAB_SIZE})
    write_byte_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(CHATML_TEMPLATE)
    return directory


def test_a_prompt_and_a_pipe_are_one_question_and_the_server_ends(model: Path) -> None:
    command = [sys.executable, "-m", "app.cli", "run", str(model), "Sum up:", *SMALL]
    done = subprocess.run(command, input="a text\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(model) in " ".join(each.info["cmdline"] or ())]


def test_what_keeps_the_server_from_starting_is_said(model: Path, tmp_path: Path) -> None:
    for name, args, message in (
        ("smolm2-135m", (), "did you mean smollm2-135m"),
        (str(model), ("--max-model-len", "0"), "bad setting max_model_len = '0' (flag --max-model-len)"),
    ):
        command = [sys.executable, "-m", "app.cli", "run", name, "Hi", "--home", str(tmp_path), *args]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_nothing_asked_is_told() -> None:
    result = CliRunner().invoke(main, ["run", "smollm2-135m"], input="  \n")
    assert result.exit_code == 2
    assert "nothing is asked" in result.output


def test_settings_reach_the_server() -> None:
    flags = {"model": "other", "max_num_seqs": "3", "enforce_eager": True, "enable_prefix_caching": False}
    none = {"port": None, "served_model_name": (), "cors_origins": ("a", "b")}
    assert serve_arguments("m", Path("x.yaml"), flags | none) == [
        "--config=x.yaml",
        "--model=m",
        "--max-num-seqs=3",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--cors-origins=a",
        "--cors-origins=b",
    ]
