"""The table of architectures: a row for each family, whose modules are what a row promises, and no sooner there."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import app.models
from app.models.architecture import Architecture
from app.models.architectures import ARCHITECTURES, find, find_gguf
from app.models.config_fields import ConfigError
from app.models.names import FamilyNames

ROWS = pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.module.rsplit(".", 1)[-1])
MAX_LINES = 150


def modules_after(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter has imported after ``code``."""
    code = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))


def test_a_family_is_imported_when_it_is_asked_for() -> None:
    table = modules_after("import app.models.architectures")
    assert not {row.module for row in ARCHITECTURES} & table
    code = """
from app.models.architectures import find
find("Qwen2ForCausalLM").names
"""
    asked = modules_after(code)
    assert "app.models.qwen2.names" in asked
    assert "app.models.qwen3" not in asked


@pytest.mark.parametrize("module", ["config", "names"])
def test_what_a_family_reads_and_names_it_does_without_torch(module: str) -> None:
    code = "\n".join(f"import {row.module}.{module}" for row in ARCHITECTURES)
    assert not {"torch", "transformers"} & modules_after(code)


@ROWS
def test_every_row_loads(row: Architecture) -> None:
    assert row.title
    assert row.examples
    assert row.hf
    assert row.tasks
    assert callable(row.read)
    assert callable(row.build)
    assert isinstance(row.names, FamilyNames)
    assert (row.names.gguf is not None) == (row.names.gguf_config is not None) == bool(row.gguf)


@ROWS
def test_a_familys_files_are_short(row: Architecture) -> None:
    directory = Path(str(import_module(row.module).__file__)).parent
    for file in directory.glob("*.py"):
        assert len(file.read_text().splitlines()) <= MAX_LINES, file


@ROWS
def test_a_family_imports_no_other(row: Architecture) -> None:
    directory = Path(str(import_module(row.module).__file__)).parent
    others = {other.module for other in ARCHITECTURES} - {row.module}
    for file in directory.glob("*.py"):
        froms = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom))
        assert not {node.module for node in froms if node.module and node.module.rpartition(".")[0] in others}, file


def test_there_is_one_row_for_each_family_and_one_for_each_name() -> None:
    packages = [f"app.models.{module.name}" for module in pkgutil.iter_modules(app.models.__path__) if module.ispkg]
    assert sorted(packages) == sorted(row.module for row in ARCHITECTURES)
    for names in ([name for row in ARCHITECTURES for name in row.hf], [n for row in ARCHITECTURES for n in row.gguf]):
        assert max(Counter(names).values()) == 1


def test_names_by_which_other_rows_read_are_theirs() -> None:
    read = {name for row in ARCHITECTURES for name in row.gguf}
    for row in ARCHITECTURES:
        assert set(row.gguf_as) <= read - set(row.gguf)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("Phi4ForCausalLM", "Phi3ForCausalLM (Phi-3)"),
        ("gemma3forcausallm", "Gemma3ForCausalLM (Gemma 3)"),
        ("GPT2Model", "GPT2LMHeadModel (GPT-2)"),
        ("Exaone4_5_ForCausalLM", "Exaone4ForCausalLM (EXAONE 4)"),
    ],
)
def test_an_unknown_architecture_is_told_the_nearest(asked: str, nearest: str) -> None:
    message = f"architectures = '{asked}' is not supported; the nearest that is served is {nearest}; `tuili models` "
    with pytest.raises(ConfigError, match=re.escape(message)):
        find(asked)


def test_an_unknown_gguf_architecture_is_told_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"^architecture 'qwen3vl' is not .* is qwen3 \(Qwen3\); `tuili models` lists"
    ):
        find_gguf("qwen3vl")


def test_what_all_names_end_in_makes_none_near() -> None:
    with pytest.raises(ConfigError) as error:
        find("XyzzyForCausalLM")
    assert str(error.value) == (
        "architectures = 'XyzzyForCausalLM' is not supported; `tuili models` lists all that are; "
        "--via transformers serves, slowly, what transformers has"
    )


def test_a_long_unknown_name_is_cut() -> None:
    with pytest.raises(ConfigError) as error:
        find("x\n" * 1_000_000)
    assert len(str(error.value)) < 250
    assert "\n" not in str(error.value)
