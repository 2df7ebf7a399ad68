"""``tuili plan``: the figures of known shapes, what a real runner holds, and advice that works."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from app.cli import main
from app.kernels import dispatch
from app.quant.placement import Placement, WeightFormat
from app.runner.loading import read_model_config
from app.runner.memory import Budget
from app.runner.start import make_runner, plan_for_gpu
from tests.models.gemma3.test_config import GEMMA3_27B
from tests.models.gemma4.test_config import E2B as GEMMA4_E2B
from tests.models.test_config import QWEN3_MOE
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, discard, engine_config, run

GIB = 1 << 30
NAMED = {"architectures": ["Gemma4ForCausalLM"]}
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


GPT2_XL = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 1600,
    "n_head": 25,
    "n_layer": 48,
    "n_positions": 1024,
    "vocab_size": 50257,
}
WINDOW = 1024
WINDOWED = LLAMA_8B | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "layer_types": [*["sliding_attention"] * 7, "full_attention"] * 4,
}


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An 8B model of which every eighth layer sees all."""
    directory = tmp_path_factory.mktemp("windowed-8b")
    (directory / "config.json").write_text(json.dumps(WINDOWED))
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama-8b")
    (directory / "config.json").write_text(json.dumps(LLAMA_8B))
    return directory


@pytest.fixture(autouse=True)
def modes() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


def ask(model: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, ["plan", str(model), *flags])


def row_of(model: Path, *flags: str) -> dict[str, Any]:
    result = ask(model, *flags, "--json")
    assert result.exit_code == 0, result.stderr
    row: dict[str, Any] = json.loads(result.stdout)
    return row


def test_an_8b_model_on_80_gib(llama: Path) -> None:
    row = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192")
    # 8.03 billion parameters in bf16, and the rotary angles of 8,192 positions in fp32.
    assert row["weights"] == 2 * 8_030_261_248 + 8192 * 128 * 4
    assert row["logits"] == 256 * 128256 * 4
    # Keys and values of 32 layers of 8 heads of 128, in bf16: 131,072 bytes a token.
    assert row["kv_cache"] == row["kv_cache_tokens"] * 131_072
    parts = ("weights", "activations", "logits", "sampling", "inputs", "graphs", "reserve", "kv_cache")
    assert row["memory"] == 80 * GIB
    assert 0 <= row["memory"] - sum(row[part] for part in parts) < 16 * 131_072


def test_the_prefix_caches_memory_is_told_beside_the_gpus(llama: Path) -> None:
    plain = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192")
    tiered = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192", "--prefix-cache-ram", "64GiB")
    assert (plain["prefix_cache_ram"], plain["prefix_cache_ram_tokens"]) == (0, 0)
    assert (tiered["prefix_cache_ram"], tiered["prefix_cache_ram_tokens"]) == (64 * GIB, 64 * GIB // 131_072)
    assert tiered["kv_cache"] == plain["kv_cache"]


def test_a_gpt2_xl(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2_XL))
    row = row_of(tmp_path, "--gpu-memory", "16GiB")
    assert row["weights"] == 2 * 1_557_611_200
    assert row["max_model_len"] == 1024
    assert row["kv_cache"] == row["kv_cache_tokens"] * 48 * 2 * 1600 * 2
    assert "context of 1024" in ask(tmp_path, "--gpu-memory", "16GiB", "--max-model-len", "1025").stderr


def test_all_experts_are_held(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_MOE))
    row = row_of(tmp_path, "--gpu-memory", "80GiB", "--max-model-len", "8192")
    assert row["weights"] == 2 * 30_532_122_624 + 8192 * 128 * 4
    # The router stays in bf16 like embedding and head; a scale for each output.
    int8 = row_of(tmp_path, "--gpu-memory", "80GiB", "--max-model-len", "8192", "--quantization", "int8")
    floating = 2 * 151936 * 2048 + 48 * 128 * 2048
    assert int8["weights"] == pytest.approx(30_532_122_624 + floating, rel=0.01)


def test_steps_that_are_not_recorded_leave_more_to_the_pages(llama: Path) -> None:
    recorded = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192")
    eager = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192", "--enforce-eager")
    few = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192", "--max-num-seqs", "8")
    assert eager["graphs"] == 0 < few["graphs"] < recorded["graphs"] < GIB
    assert eager["kv_cache"] - recorded["kv_cache"] == pytest.approx(recorded["graphs"], abs=16 * 131_072)


def test_int8_halves_weights_and_pages(llama: Path) -> None:
    plain = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192")
    flags = ("--quantization", "int8", "--kv-cache-dtype", "int8")
    int8 = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192", *flags)
    # But for embedding and head, 1.05 billion parameters together.
    assert int8["weights"] == pytest.approx(plain["weights"] - (8_030_261_248 - 2 * 128256 * 4096), rel=0.01)
    assert int8["kv_cache"] == int8["kv_cache_tokens"] * 32 * 2 * 8 * (128 + 2)


def test_each_of_several_gpus_holds_its_share(llama: Path) -> None:
    one = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192")
    two = row_of(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192", "--tensor-parallel-size", "2")
    assert two["weights"] == pytest.approx(one["weights"] / 2, rel=0.001)
    assert two["kv_cache"] == two["kv_cache_tokens"] * 131_072 // 2
    # Logits of both, before they stand side by side, and in bf16 whatever is not split.
    assert two["activations"] - one["activations"] < 256 * 128256 * 4


def test_the_text_part_of_gemma_3_27b(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA3_27B))
    row = row_of(tmp_path, "--gpu-memory", "80GiB", "--max-model-len", "32768")
    angles = 2 * 32768 * 128 * 4
    assert row["weights"] == pytest.approx(2 * 27_009_346_304 + angles, rel=0.001)
    # Of 62 layers 52 keep 1,024 tokens of a sequence.
    in_all_layers = 62 * 2 * 16 * 128 * 2
    assert row["kv_cache"] / row["kv_cache_tokens"] < 0.4 * in_all_layers


def test_layers_that_share_pages_take_none(tmp_path: Path) -> None:
    """Of 35 layers of Gemma 4 E2B 12 with a window and 3 that see all keep pages, of one head each."""
    (tmp_path / "config.json").write_text(json.dumps(GEMMA4_E2B))
    flags = ("--gpu-memory", "40GiB", "--max-model-len", "32768")
    row = row_of(tmp_path, *flags)
    # 2.35 of 4.65 billion parameters are the layers' own table; angles of 32,768 positions, a quarter of the wide ones.
    table = 262144 * 35 * 256
    assert row["weights"] == pytest.approx(2 * 4_650_000_000 + 32768 * (256 + 128) * 4, rel=0.01)
    assert row["weights"] > 2 * table
    in_wide_layers, in_narrow_ones = 3 * 2 * 512 * 2, 12 * 2 * 256 * 2
    assert in_wide_layers < row["kv_cache"] / row["kv_cache_tokens"] < in_wide_layers + in_narrow_ones
    (tmp_path / "config.json").write_text(json.dumps({**GEMMA4_E2B["text_config"], "num_kv_shared_layers": 0, **NAMED}))
    assert row_of(tmp_path, *flags)["kv_cache_tokens"] < 0.6 * row["kv_cache_tokens"]


def test_windows_leave_room_for_more_tokens(llama: Path, windowed: Path) -> None:
    flags = ("--gpu-memory", "80GiB", "--max-model-len", "65536")
    full, some = row_of(llama, *flags), row_of(windowed, *flags)
    assert some["kv_cache"] == pytest.approx(full["kv_cache"], rel=0.01)
    assert some["kv_cache_tokens"] > 2.5 * full["kv_cache_tokens"]
    figures = re.search(r"holds ([\d,]+) tokens, (\d+) sequences of 65,536", ask(windowed, *flags).stderr)
    assert figures is not None
    assert int(figures[1].replace(",", "")) == some["kv_cache_tokens"]
    assert int(figures[2]) == some["kv_cache_tokens"] // 65536


def test_advice_for_a_model_with_windows_works(windowed: Path) -> None:
    flags = ["--gpu-memory", "18GiB", "--max-model-len", "131072", "--max-num-seqs", "16"]
    refused = ask(windowed, *flags)
    assert refused.exit_code != 0
    advice = re.search(r"lower max_model_len to (\d+)", refused.stderr)
    assert advice is not None
    flags[3] = advice[1]
    assert row_of(windowed, *flags)["max_model_len"] == int(advice[1])
    flags[3] = str(int(advice[1]) * 11 // 10)
    assert ask(windowed, *flags).exit_code != 0


def test_a_table_for_people_beside_the_json(llama: Path) -> None:
    result = ask(llama, "--gpu-memory", "80GiB", "--max-model-len", "8192")
    assert json.loads(result.stdout)["model"] == llama.name
    assert "KV cache" in result.stderr
    assert re.search(r"sequences of 8,192", result.stderr)


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (["--gpu-memory", "16GiB"], r"set (quantization) to (int8)"),
        (["--gpu-memory", "20GiB", "--max-model-len", "131072"], r"lower (max_model_len) to (\d+)"),
        (["--gpu-memory", "26GiB", "--max-model-len", "131072"], r"set (kv_cache_dtype) to (int8)"),
        (["--gpu-memory", "24GiB", "--kv-cache-memory", "20GiB"], r"lower (kv_cache_memory) to (\d+)"),
        (
            ["--gpu-memory", "80GiB", "--max-model-len", "8192", "--kv-cache-memory", "1MiB"],
            r"(kv_cache_memory) = .* raise it to (\d+)",
        ),
    ],
)
def test_advice_is_followed_and_works(llama: Path, flags: list[str], advice: str) -> None:
    result = ask(llama, *flags)
    assert result.exit_code == 1
    assert result.stdout == ""
    found = re.search(advice, result.stderr)
    assert found, result.stderr
    assert row_of(llama, *flags, "--" + found[1].replace("_", "-"), found[2])["kv_cache_tokens"] > 0


def test_a_little_too_little_is_enough_without_graphs(llama: Path) -> None:
    length = ("--max-model-len", "131072")
    found = re.search(r"take (\d+\.\d+) GiB of memory", ask(llama, "--gpu-memory", "20GiB", *length).stderr)
    assert found
    memory = str(int((float(found[1]) - 0.03) * GIB))
    assert "set enforce_eager" in ask(llama, "--gpu-memory", memory, *length).stderr
    assert row_of(llama, "--gpu-memory", memory, *length, "--enforce-eager")["kv_cache_tokens"] >= 131072


def test_the_memory_that_would_do_does(llama: Path) -> None:
    result = ask(llama, "--gpu-memory", "20GiB", "--max-model-len", "131072")
    found = re.search(r"take (\d+\.\d+) GiB of memory", result.stderr)
    assert found
    enough = int((float(found[1]) + 0.01) * GIB)
    assert row_of(llama, "--gpu-memory", str(enough), "--max-model-len", "131072")["kv_cache_tokens"] >= 131072


def test_no_gpu_and_no_size_are_said(llama: Path) -> None:
    assert "plans are for GPUs" in ask(llama, "--gpu-memory", "80GiB", "--device", "cpu").stderr
    assert "no such file or directory" in ask(llama / "missing", "--gpu-memory", "80GiB").stderr
    assert "--gpu-memory 'much' is no size" in ask(llama, "--gpu-memory", "much").stderr
    if not torch.cuda.is_available():
        assert "--gpu-memory 80GiB" in ask(llama).stderr


@pytest.mark.parametrize(
    ("variant", "quantization"),
    [
        ("qwen3", "none"),
        pytest.param("qwen3", "int8", marks=pytest.mark.slow),
        pytest.param("gpt2", "int8", marks=pytest.mark.slow),
    ],
)
def test_a_runner_holds_what_was_planned(tmp_path: Path, variant: str, quantization: str) -> None:
    """On a CPU that interprets a GPU's kernels: the same buffers, in memory that can be counted."""
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    checkpoint = save(make_reference(variant, num_hidden_layers=2), tmp_path)
    config = engine_config(checkpoint, kernels="interpret", quantization=quantization, kv_cache_dtype="float32")
    runner = make_runner(config, discard)
    sequence = Request(0, [1, 2, 3], [0])
    run(runner, [sequence], 2)
    held = runner.footprint()
    weights = WeightFormat.W8A8 if quantization == "int8" else WeightFormat.PLAIN
    placement = Placement(torch.float32, torch.device("cuda"), weights)
    model = read_model_config(checkpoint)
    plan = plan_for_gpu(model, config, placement, Budget(memory=GIB, reserve=0))
    assert plan.footprint == held
