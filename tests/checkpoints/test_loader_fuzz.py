"""Whatever is in a weight file: it loads, or there is a WeightError of one line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.checkpoints.loader import WeightError, iter_weights
from tests.store.tiny import random_weights, write_directory, write_gguf

_HEADER = 4000
_Mutation = tuple[int, bytes]
mutations = st.lists(st.tuples(st.integers(0, _HEADER), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def originals() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        weights = {key: value for key, value in random_weights().items() if "layers.1" not in key}
        directory = write_directory(Path(name), weights)
        # A short vocabulary, so that mutations meet structure more often than text.
        extra = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1, 1]}
        return {
            ".safetensors": (directory / "model.safetensors").read_bytes(),
            ".gguf": write_gguf(directory / "m.gguf", weights, extra=extra).read_bytes(),
        }


def mutate(data: bytes, changes: list[_Mutation], cut: int | None) -> bytes:
    mutated = bytearray(data)
    for position, patch in changes:
        mutated[position : position + len(patch)] = patch
    return bytes(mutated if cut is None else mutated[:cut])


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
@settings(max_examples=150, deadline=None)
@given(changes=mutations, cut=st.none() | st.integers(0, 60_000))
def test_mutated_file_loads_or_raises_weight_error(
    originals: dict[str, bytes], suffix: str, changes: list[_Mutation], cut: int | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / f"m{suffix}"
        file.write_bytes(mutate(originals[suffix], changes, cut))
        try:
            for stored in iter_weights([file]):
                assert tuple(stored.read().shape) == stored.shape
        except WeightError as e:
            assert str(e).startswith(str(file))  # noqa: PT017 - a correct load is as good
            assert "\n" not in str(e)  # noqa: PT017
