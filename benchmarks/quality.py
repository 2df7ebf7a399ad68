"""What each number format costs a model: perplexity and top-1 agreement against fp32, in English and in Chinese.

    python -m benchmarks.quality [MODEL]         a model's own weights
    python -m benchmarks.quality --dummy [NAME]  random weights, in shapes of which nobody publishes small trained ones

Random weights say nothing of perplexity (it stays near the vocabulary's size), and their agreement is a pessimist's:
the most likely token leads by little. Between shapes it compares: where int8 loses more of what bf16 loses than in the
dense shape, an op is to blame. Rows go to benchmarks/results/quality.jsonl.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from app.llm import EngineOptions
from app.quality.quantize import table
from app.quality.report import FORMATS, compare
from app.store import Store, TerminalProgress, pull, resolve
from benchmarks.rows import RESULTS, context

_TOKENIZER = "smollm2-135m"
_DUMMY_TOKENS = 4096
_COMMON: Mapping[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_EXPERTS: Mapping[str, Any] = {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 384}
_DELTA: Mapping[str, Any] = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
_LATENTS: Mapping[str, Any] = {
    "q_lora_rank": 192,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "num_key_value_heads": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 384,
    "n_group": 4,
    "topk_group": 2,
}
DUMMIES: Mapping[str, Mapping[str, Any]] = {
    "dense": {"architectures": ["Qwen3ForCausalLM"]},
    "experts": {"architectures": ["Qwen3MoeForCausalLM"], **_EXPERTS},
    "delta": {"architectures": ["Qwen3_5ForCausalLM"], **_DELTA},
    "delta and experts": {
        "architectures": ["Qwen3NextForCausalLM"],
        **_DELTA,
        **_EXPERTS,
        "shared_expert_intermediate_size": 384,
    },
    "latents": {"architectures": ["DeepseekV3ForCausalLM"], **_LATENTS, "rope_interleave": True},
}
"""What a ``config.json`` holds besides the common sizes."""


@click.command(help=__doc__)
@click.argument("model", required=False)
@click.option("--dummy", is_flag=True, help="Random weights of every shape, or of MODEL's.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "quality.jsonl", show_default=True)
def main(model: str | None, dummy: bool, output: Path) -> None:
    """Measures all formats and appends the rows."""
    if not dummy:
        _measure(model or _TOKENIZER, output)
        return
    if model is not None and model not in DUMMIES:
        raise click.BadParameter(f"no such shape: {model}; there are {', '.join(DUMMIES)}")
    for name in [model] if model is not None else DUMMIES:
        with tempfile.TemporaryDirectory(prefix="tuili-quality-") as directory:
            _write(Path(directory), DUMMIES[name])
            _measure(directory, output, dummy=name)


def _write(directory: Path, config: Mapping[str, Any]) -> None:
    shutil.copy(pull(_TOKENIZER, Store(), TerminalProgress()).tokenizer_file, directory / "tokenizer.json")
    (directory / "config.json").write_text(json.dumps({**_COMMON, **config}), encoding="utf-8")


def _measure(model: str, output: Path, dummy: str | None = None) -> None:
    where = context("quality") | {"model": model if dummy is None else f"dummy: {dummy}"}
    random: EngineOptions = {"load_format": "dummy"} if dummy is not None else {}
    files = pull(model, Store(), TerminalProgress()) if dummy is None else resolve(model, Store(), need_weights=False)
    rows = []
    for row in compare(
        files,
        formats={name: options | random for name, options in FORMATS.items()},
        max_tokens=_DUMMY_TOKENS if dummy is not None else None,
        announce=print,
    ):
        rows.append(row)
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**where, **row.fields()}) + "\n")
    print(table(rows))
    print(json.dumps([row.fields() for row in rows]))


if __name__ == "__main__":
    main()
