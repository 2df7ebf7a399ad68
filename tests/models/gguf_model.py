"""Tiny models as llama.cpp's converter writes them, and that what is read of such a file is the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from app.models.architectures import parse_config
from app.store import ModelFiles, Store, resolve
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.scheduled import NUM_TOKENS, TOKENS, answers, engine_of, greedy
from tests.models.tiny import CONTEXT
from tests.runner.driver import Request, run, runner_of
from tests.store.tiny import VOCAB, Array, permute, write_gguf

VOCAB_SIZE = len(VOCAB)
PROMPT = [(7 * i) % VOCAB_SIZE for i in range(40)]
Stored = Callable[[str, Array], Array]


def as_it_is(_name: str, values: Array) -> Array:
    """Of most architectures."""
    return values


def permuted(reference: PreTrainedModel) -> Stored:
    """Rows of queries and keys as of architecture ``llama``."""
    config = reference.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def stored(name: str, values: Array) -> Array:
        count = heads.get(name.split(".")[-2])
        return values if count is None else permute(values, count)

    return stored


def write_model(
    path: Path,
    reference: PreTrainedModel,
    arch: gguf.MODEL_ARCH,
    metadata: Mapping[str, Any],
    *,
    stored: Stored = as_it_is,
    tensors: Mapping[str, Array] | None = None,
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """A GGUF file of a model.

    Args:
        metadata: beside what most have; keys without the architecture's name, or whole ones; None removes.
        stored: the file's values of a checkpoint's tensor.
        tensors: by the file's names, in place of those of the model's own.
        types: quantised types by the file's names; fp32 otherwise.
    """
    config, name = reference.config, gguf.MODEL_ARCH_NAMES[arch]
    usual: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": None,
        **metadata,
    }
    if tensors is None:
        state = reference.state_dict()
        own = {name for name in state if name != "lm_head.weight" or not config.tie_word_embeddings}
        tensors = named(arch, {name: stored(name, state[name].numpy()) for name in state if name in own})
    extra = {key if key.split(".")[0] in ("tokenizer", "general") else f"{name}.{key}": v for key, v in usual.items()}
    return write_gguf(path, {}, arch=name, extra=extra, tensors=tensors, types=types)


def write_checkpoint(
    path: Path,
    directory: Path,
    arch: gguf.MODEL_ARCH,
    metadata: Mapping[str, Any],
    *,
    change: Stored = as_it_is,
    extra: Mapping[str, Array] | None = None,
) -> Path:
    """A GGUF file of the checkpoint in ``directory``.

    Args:
        metadata: of the architecture, without its name, and of the tokenizer, beside or in place of the sizes; None
            removes.
        change: the file's values of a checkpoint's tensor.
        extra: tensors by GGUF name.
    """
    tensors = load_file(directory / "model.safetensors")
    layers = 1 + max(int(part) for name in tensors for part in name.split(".") if part.isdigit())
    sizes = {"context_length": CONTEXT, "embedding_length": 64, "feed_forward_length": 96, "block_count": layers}
    prefix = gguf.MODEL_ARCH_NAMES[arch]
    own = {key if key.startswith("tokenizer.") else f"{prefix}.{key}": v for key, v in {**sizes, **metadata}.items()}
    theirs = named(arch, {name: change(name, values.numpy()) for name, values in tensors.items()})
    return write_gguf(path, {}, arch=prefix, extra=own, tensors=theirs | dict(extra or {}))


def named(arch: gguf.MODEL_ARCH, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Weights by checkpoint name under llama.cpp's names."""
    names, found = gguf.get_tensor_name_map(arch, 64), {}
    for name, values in weights.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        found[theirs] = values
    return found


def resolved(file: Path) -> ModelFiles:
    """What the store makes of a file."""
    return resolve(str(file), Store(file.parent / "home"))


def is_the_model(file: Path, reference: PreTrainedModel) -> None:
    """A file's config is the checkpoint's, and its likeliest tokens are transformers'."""
    files = resolved(file)
    architectures = [type(reference).__name__]
    assert parse_config(files.config) == parse_config(reference.config.to_dict() | {"architectures": architectures})
    request = Request(0, PROMPT, list(range(8)))
    run(runner_of(files.directory, weights=tuple(map(str, files.weights))), [request], NUM_TOKENS)
    assert request.outputs == greedy(reference, PROMPT, draft=request.outputs)


def check_same(file: Path, reference: PreTrainedModel, directory: Path, **options: Any) -> ModelFiles:
    """A GGUF file is the checkpoint that it was written of: log-probabilities and tokens. Returns what was derived."""
    files = resolved(file)
    options = {"weights": tuple(map(str, files.weights)), **options}
    logprobs = served_logprobs(runner_of(files.directory, **options))
    torch.testing.assert_close(logprobs, expected_logprobs(directory), rtol=0, atol=1e-4)
    (answer,) = answers(engine_of(files.directory, **options), [TOKENS[:20]])
    assert answer == greedy(reference, TOKENS[:20], draft=answer)
    return files
