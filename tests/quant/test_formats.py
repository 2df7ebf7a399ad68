"""The table of weight formats: what a row promises, and that nobody asks which row it is."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import app
import app.quant.formats
from app.kernels.types import Act, LinearWeight
from app.layers.embedding import Embedding, LMHead
from app.layers.linear import Linear, Split
from app.quant.formats import QUANTIZATIONS, WeightFormat
from app.quant.formats.base import NewWeight, Site, Storage
from app.quant.formats.plain import PLAIN, Plain, PlainWeight
from app.quant.placement import Placement

CPU, META = torch.device("cpu"), torch.device("meta")
ROWS = pytest.mark.parametrize("row", WeightFormat, ids=lambda row: row.label)
N, K = 8, 16


def test_the_table_needs_no_torch_and_imports_no_format() -> None:
    code = "import app.quant.formats, json, sys; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert "app.quant.formats" in modules
    assert not [name for name in modules if name == "torch" or name.startswith("app.quant.formats.")]


def test_every_module_has_a_row_and_every_setting_a_format() -> None:
    modules = {type(row.storage).__module__.rpartition(".")[-1] for row in WeightFormat}
    assert modules == {module.name for module in pkgutil.iter_modules(app.quant.formats.__path__)} - {"base"}
    assert QUANTIZATIONS == ("auto", "none", "int8", "int8_weight_only", "file")
    assert len({row.label for row in WeightFormat}) == len(WeightFormat)


@ROWS
def test_weights_want_the_input_that_the_format_says(row: WeightFormat) -> None:
    placement = Placement(torch.bfloat16, META, row)
    wanted = row.storage.act_format
    assert placement.new_weight(N, K, bias=True).weight.act_format is wanted
    assert placement.new_experts(2, N, K).weight.act_format is wanted


@ROWS
def test_what_stays_floating_is_of_a_format_that_does(row: WeightFormat) -> None:
    placement = Placement(torch.float32, META, row)
    floating = placement.floating()
    weight = floating.new_weight(N, K, bias=False).weight
    assert isinstance(weight, LinearWeight)
    assert weight.scale is None
    assert weight.values.dtype == placement.table_dtype == floating.table_dtype
    assert floating.floating() == floating


@ROWS
def test_a_head_shares_a_table_that_is_what_it_would_be(row: WeightFormat) -> None:
    placement = Placement(torch.float32, META, row)
    embedding = Embedding(N, K, placement=placement)
    head = LMHead(N, K, placement=placement, tied=embedding).weight
    assert isinstance(head, LinearWeight)
    assert (head.values is embedding.table) == placement.head_shares_table
    if placement.head_shares_table:
        alone = placement.new_head(N, K).weight
        assert isinstance(alone, LinearWeight)
        assert isinstance(embedding.table, torch.Tensor)
        assert (alone.values.dtype, alone.scale) == (embedding.table.dtype, None)


class Halves(Plain):
    """A format that no row names: every weight and table in fp16."""

    def new_weight(self, site: Site, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:
        return PlainWeight(n, k, bias=bias, dtype=torch.float16, device=site.device)

    def table_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float16


class HalfRow:
    """Stands where a row does."""

    storage: Storage = Halves(act_format=PLAIN.act_format, split_k=True)


def test_a_new_format_is_asked_for_all_that_a_model_wants() -> None:
    row: Any = HalfRow()
    placement = Placement(torch.float32, CPU, row).for_model()
    assert placement.workspace is not None
    assert not placement.packed
    layer = Linear({"up": N}, K, split=Split.OUTPUTS, bias=False, placement=placement)
    weight, x = torch.randn(N, K).half(), torch.randn(3, K).half()
    layer.destinations("mlp")["mlp.up.weight"].copy_(weight)
    out = torch.full((3, N), torch.nan)
    layer(Act(x), Act(out))
    torch.testing.assert_close(out, x.float() @ weight.float().t())
    assert placement.floating().format is WeightFormat.PLAIN
    head = LMHead(N, K, placement=placement, tied=Embedding(N, K, placement=placement)).weight
    assert isinstance(head, LinearWeight)
    assert head.values.dtype == torch.float16


def test_nobody_compares_formats() -> None:
    """A branch by format belongs into the format."""
    root = Path(str(app.__file__)).parent
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.MatchValue | ast.Dict | ast.DictComp):
                names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                assert "WeightFormat" not in names, f"{file}:{node.lineno}"
