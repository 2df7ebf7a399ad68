"""Tiny checkpoints whose files were changed by hand, and what the two implementations make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.contract.request import SamplingParams
from app.runner.model_runner import ModelRunner
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, run

LENGTH = 60
torch.manual_seed(3)
TOKENS: list[int] = torch.randint(128, (LENGTH,)).tolist()


def checkpoint(
    directory: Path,
    variant: str = "qwen3",
    *,
    config: dict[str, Any] | None = None,
    weights: Callable[[dict[str, Tensor]], object] | None = None,
    **shape: Any,
) -> Path:
    """A checkpoint of a variant.

    Args:
        config: replaces fields of config.json.
        weights: changes the file's tensors.
    """
    directory.mkdir(exist_ok=True)
    save(make_reference(variant, **shape), directory)
    if config:
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if weights is not None:
        tensors = load_file(directory / "model.safetensors")
        weights(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def expected_logprobs(directory: Path) -> Tensor:
    """Log-probabilities of ``TOKENS`` from the second on, by the model that transformers chooses for the directory."""
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = reference.eval()(torch.tensor([TOKENS])).logits[0]
    return torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]


def served_logprobs(runner: ModelRunner, *, adapter: int = -1) -> Tensor:
    """Likewise by a runner, which prefills in chunks."""
    params = SamplingParams(temperature=0.0, prompt_logprobs=0)
    request = Request(slot=0, prompt=TOKENS, blocks=list(range(8)), params=params, adapter=adapter)
    run(runner, [request], 1, chunk=23)
    assert request.error is None
    return torch.tensor([entry.logprob for entry in request.prompt_logprobs])
