"""The table of architectures: a row for each family, whose modules are what a row promises, and no sooner there."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import app.models
from app.models.architectures import ARCHITECTURES, Architecture
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


def test_there_is_one_row_for_each_family_and_one_for_each_name() -> None:
    packages = [f"app.models.{module.name}" for module in pkgutil.iter_modules(app.models.__path__) if module.ispkg]
    assert sorted(packages) == sorted(row.module for row in ARCHITECTURES)
    for names in ([name for row in ARCHITECTURES for name in row.hf], [n for row in ARCHITECTURES for n in row.gguf]):
        assert max(Counter(names).values()) == 1
