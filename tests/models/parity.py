"""What every family's tests ask: transformers' logits, whole, chunked, decoded token by token, batched.

A family's ``test_parity.py`` has a fixture ``loaded``, a :class:`Loaded` of each variant, and a class of these tests.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.checkpoints.loader import iter_weights
from app.models.architectures import find
from app.models.base import Decoder
from app.models.config import ModelConfig
from tests.models.tiny import (
    PagedExecution,
    Variant,
    load,
    make_reference,
    reference_logits,
    save,
)
from tests.runner.steps import row_of

LENGTH = 100
CHUNKS = [1, 37, 16, 20, *[1] * 26]
"""Prefill in pieces, across block borders and past the sliding windows, then decode."""
ATOL = 1e-4

torch.manual_seed(1)
TOKENS: list[int] = torch.randint(128, (LENGTH,)).tolist()
SHUFFLED_BLOCKS: list[int] = torch.randperm(64).tolist()


class Loaded:
    """A checkpoint in both implementations."""

    def __init__(self, variant: str | Variant, directory: Path) -> None:
        self.reference: PreTrainedModel = make_reference(variant)
        self.directory = save(self.reference, directory)
        self.model: Decoder
        self.config: ModelConfig
        self.model, self.config = load(directory)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)


class ParityTests:
    """Of one family."""

    BFLOAT16 = 0.05
    """How far logits of bf16 may be from those of fp32, relatively: as far as transformers' own."""

    def test_one_shot_prefill(self, loaded: Loaded) -> None:
        logits = PagedExecution(loaded.model, loaded.config).sequence(TOKENS, [LENGTH], SHUFFLED_BLOCKS)
        close(logits, reference_logits(loaded.reference, TOKENS))

    def test_chunked_prefill_then_decode(self, loaded: Loaded) -> None:
        assert sum(CHUNKS) == LENGTH
        logits = PagedExecution(loaded.model, loaded.config).sequence(TOKENS, CHUNKS, SHUFFLED_BLOCKS)
        close(logits, reference_logits(loaded.reference, TOKENS))

    def test_one_step_mixes_prefill_chunk_and_decode(self, loaded: Loaded) -> None:
        execution = PagedExecution(loaded.model, loaded.config)
        other = TOKENS[::-1]
        execution.sequence(TOKENS, [40], SHUFFLED_BLOCKS[:3], slot=0)
        execution.sequence(other, [17], SHUFFLED_BLOCKS[3:5], slot=3)
        logits = execution.step(
            [
                row_of(3, 17, other[17:60], blocks=SHUFFLED_BLOCKS[5:7], num_logits=43),
                row_of(0, 40, TOKENS[40:41]),
                row_of(5, 0, TOKENS[:9], blocks=SHUFFLED_BLOCKS[7:8], num_logits=9),
            ]
        )
        expected, expected_other = reference_logits(loaded.reference, TOKENS), reference_logits(loaded.reference, other)
        close(logits[:43], expected_other[17:60])
        close(logits[43:44], expected[40:41])
        close(logits[44:], expected[:9])

    def test_bfloat16_is_near(self, loaded: Loaded) -> None:
        model, config = load(loaded.directory, torch.bfloat16)
        logits = PagedExecution(model, config, torch.bfloat16).sequence(TOKENS, CHUNKS, SHUFFLED_BLOCKS)
        expected = reference_logits(loaded.reference, TOKENS)
        assert logits.dtype is torch.float32
        assert (logits - expected).norm() / expected.norm() < self.BFLOAT16

    def test_destinations_name_every_tensor_of_the_checkpoint(self, loaded: Loaded) -> None:
        stacks = find(loaded.config.architecture).names.checkpoint.stacks
        listed = iter_weights(sorted(loaded.directory.glob("*.safetensors")), stacks)
        stored = {tensor.name: tensor.shape for tensor in listed}
        served = {name: tuple(tensor.shape) for name, tensor in loaded.model.destinations().items()}
        head = find(loaded.config.architecture).names.checkpoint.head_weight
        assert loaded.model.ignores(head) == loaded.config.tie_word_embeddings
        assert served == stored
