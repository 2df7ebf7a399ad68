"""Verbs are files: they are found by themselves, and each is imported alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from app.cli import main
from app.cli._verbs import Verbs

VERBS = [
    "batch",
    "bench",
    "chat",
    "completion",
    "config",
    "doctor",
    "keys",
    "list",
    "models",
    "plan",
    "ps",
    "pull",
    "quantize",
    "rm",
    "run",
    "serve",
    "show",
    "stop",
    "top",
]
HEAVY = {"torch", "pydantic", "fastapi", "starlette", "uvicorn", "numpy", "tokenizers", "httpx", "msgspec", "rich"}


def _imported(*args: str) -> set[str]:
    """Modules that a process has imported when it is done with a command line."""
    code = (
        "import sys; from app.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert not end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["pull", "--help"], ["bench", "serve", "--help"]])
def test_help_and_version_import_nothing_heavy(args: list[str]) -> None:
    assert not HEAVY & _imported(*args)


def test_a_verb_imports_no_other() -> None:
    verbs = {f"app.cli.{name}" for name in VERBS}
    assert _imported("pull", "--help") & verbs == {"app.cli.pull"}


def test_every_verb_is_there_and_says_what_it_does() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    for name in (
        "bench",
        "chat",
        "completion",
        "config",
        "doctor",
        "keys",
        "list",
        "models",
        "plan",
        "ps",
        "pull",
        "quantize",
        "serve",
    ):
        assert f"\n  {name} " in text
    context = click.Context(main)
    for name in main.list_commands(context):
        verb = main.get_command(context, name)
        assert verb is not None
        assert verb.name == name
        assert verb.help


def test_a_file_is_a_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "verbs_of_this_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_shared.py").write_text("raise AssertionError('no verb')")
    (package / "broken.py").write_text("raise AssertionError('nobody asked for it')")
    (package / "say_hello.py").write_text("import click\n@click.command()\ndef verb():\n    click.echo('hello')\n")
    monkeypatch.syspath_prepend(tmp_path)
    group = Verbs("test", package="verbs_of_this_test")
    assert CliRunner().invoke(group, ["say-hello"]).stdout == "hello\n"
    for unknown in ("_shared", "-shared", "__init__", "say_hello", "say-hello.verb", "../say-hello"):
        assert CliRunner().invoke(group, ["--", unknown]).exit_code == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["serv"], "No such command 'serv' (did you mean serve?)."),
        (["pul", "x"], "No such command 'pul' (did you mean pull?)."),
        (["zzzzzz"], "No such command 'zzzzzz'."),
        (["serve", "--prot", "1"], "'--port'"),
    ],
)
def test_a_typo_is_told_what_is_near(args: list[str], message: str) -> None:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert message in result.output


def test_python_runs_the_package() -> None:
    command = [sys.executable, "-m", "app.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("tuili, version")


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_completion_scripts(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_TUILI_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [("tuili qua", "quantize"), ("tuili serve --max-num-", "--max-num-seqs"), ("tuili pull smol", "smollm2-135m")],
)
def test_what_a_shell_completes(words: str, offered: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_TUILI_COMPLETE", "bash_complete")
    monkeypatch.setenv("TUILI_HOME", str(tmp_path))
    result = CliRunner().invoke(main, prog_name="tuili")
    assert f"plain,{offered}" in result.stdout.splitlines()
