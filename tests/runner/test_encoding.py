"""Batches of whole sequences through a small encoder, in every format, against plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from app.contract.config import EngineConfig
from app.contract.request import Pooling
from app.contract.step import EncodeBatch, Encoded, StepPlan
from app.kernels import dispatch
from app.runner.encoding import EncodingRunner
from app.runner.errors import RunnerError
from app.runner.parallel import start_runner
from tests.models.test_dispatch_contract import strays_of
from tests.models.tiny_encoder import Reference, served
from tests.runner.driver import discard

SEQUENCES = [[5], [1, 2, 3], list(range(80)), [7] * 33, [3, 2, 1], list(range(20, 60))]
FORMATS = {
    "plain": {"dtype": "float32", "kernels": "reference"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "auto", "dtype": "auto", "kernels": "strict"},
}
TOLERANCE = {"plain": 1e-5, "bf16": 5e-2, "int8": 8e-2}


@pytest.fixture(autouse=True)
def in_the_table() -> Iterator[None]:
    with served():
        yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


def start(directory: Path, **config: object) -> EncodingRunner:
    values: dict[str, object] = {
        "model_dir": str(directory),
        "weights": (str(directory / "model.safetensors"),),
        "max_num_batched_tokens": 256,
        "threads": 2,
        **config,
    }
    runner = start_runner(EngineConfig(**values), discard)  # type: ignore[arg-type]
    assert isinstance(runner, EncodingRunner)
    return runner


def batch_of(
    sequences: Sequence[Sequence[int]], pooling: Pooling = Pooling.MEAN, *, normalize: bool = True
) -> EncodeBatch:
    bounds = [0, *itertools.accumulate(len(sequence) for sequence in sequences)]
    return EncodeBatch(
        step=1,
        token_ids=[token_id for sequence in sequences for token_id in sequence],
        bounds=bounds,
        pooling=[pooling] * len(sequences),
        normalize=[normalize] * len(sequences),
    )


def run(runner: EncodingRunner, batch: EncodeBatch) -> list[Encoded]:
    return runner.collect(runner.submit(batch)).sequences


def tensor_of(encoded: Encoded) -> Tensor:
    assert encoded.error is None
    assert encoded.dtype == "float32"
    return torch.from_numpy(np.frombuffer(encoded.data, dtype="<f4").reshape(encoded.shape).copy())


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def checkpoint(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("normal", [False, True])
def test_equals_plain_torch(reference: Reference, checkpoint: Path, name: str, normal: bool) -> None:
    """Whatever poolings stand side by side in a batch."""
    runner = start(checkpoint, **FORMATS[name])
    for turn in range(len(Pooling)):
        poolings = list(itertools.islice(itertools.cycle(Pooling), turn, turn + len(SEQUENCES)))
        batch = msgspec.structs.replace(batch_of(SEQUENCES, normalize=normal), pooling=poolings)
        for sequence, pooling, encoded in zip(SEQUENCES, poolings, run(runner, batch), strict=True):
            expected = reference.encode(sequence, pooling, normal=normal)
            actual = tensor_of(encoded)
            assert actual.shape == expected.shape
            assert (actual - expected).norm() <= TOLERANCE[name] * expected.norm()


@pytest.mark.parametrize("name", FORMATS)
def test_a_sequence_gives_the_same_bits_alone(checkpoint: Path, name: str) -> None:
    runner = start(checkpoint, **FORMATS[name])
    together = run(runner, batch_of(SEQUENCES))
    for sequence, encoded in zip(SEQUENCES, together, strict=True):
        (alone,) = run(runner, batch_of([sequence]))
        if name == "plain":  # torch's products hang on how many rows there are
            assert (tensor_of(alone) - tensor_of(encoded)).abs().max() < 1e-6
        else:
            assert alone.data == encoded.data


INTERPRETED = {
    "float32": ({"dtype": "float32"}, 1e-5),
    "bfloat16": ({"dtype": "bfloat16"}, 5e-2),
    "W8A8": ({"dtype": "float32", "quantization": "int8"}, 8e-2),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "float32" else []) for name in INTERPRETED]
)
def test_triton_equals_plain_torch(reference: Reference, checkpoint: Path, name: str) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    formats, tolerance = INTERPRETED[name]
    runner = start(checkpoint, kernels="interpret", **formats)
    assert runner.info.kernels == "triton"
    sequences = [[5], [3, 2, 1], list(range(20, 25))]
    together = run(runner, batch_of(sequences))
    for sequence, encoded in zip(sequences, together, strict=True):
        expected = reference.encode(sequence)
        assert (tensor_of(encoded) - expected).norm() <= tolerance * expected.norm()
        if name == "W8A8":  # a single token's floating products are of another kernel
            (alone,) = run(runner, batch_of([sequence]))
            assert alone.data == encoded.data


def test_batches_compute_in_kernels_alone(checkpoint: Path) -> None:
    runner = start(checkpoint, **FORMATS["plain"])
    assert strays_of(lambda: runner.submit(batch_of(SEQUENCES))) == set()


def test_native_batches_are_one_call(checkpoint: Path) -> None:
    runner = start(checkpoint, **FORMATS["int8"])
    assert runner.collect(runner.submit(batch_of(SEQUENCES))).replayed
    assert runner.info.kernels not in ("torch", "triton")


def test_a_recording_gives_the_bits_of_op_by_op(checkpoint: Path) -> None:
    runner = start(checkpoint, **FORMATS["int8"])
    recorded = run(runner, batch_of(SEQUENCES, Pooling.NONE))
    runner._program = None
    assert run(runner, batch_of(SEQUENCES, Pooling.NONE)) == recorded


def test_windows(tmp_path: Path) -> None:
    reference = Reference(window=9)
    runner = start(reference.save(tmp_path / "model"), **FORMATS["plain"])
    for sequence, encoded in zip(SEQUENCES, run(runner, batch_of(SEQUENCES)), strict=True):
        assert (tensor_of(encoded) - reference.encode(sequence)).abs().max() < 1e-5


def test_numbers_gone_bad_are_their_sequences_error(tmp_path: Path) -> None:
    reference = Reference()
    reference.weights["embed.weight"][50] = float("nan")
    runner = start(reference.save(tmp_path / "model"), **FORMATS["int8"])
    first, bad, last = run(runner, batch_of([[1, 2, 3], [49, 50, 51], [4, 5]]))
    assert bad.error is not None
    assert bad.data == b""
    for encoded, sequence in ((first, [1, 2, 3]), (last, [4, 5])):
        assert (tensor_of(encoded) - reference.encode(sequence)).norm() < TOLERANCE["int8"]


def test_what_the_engine_is_told(checkpoint: Path) -> None:
    runner = start(checkpoint, **FORMATS["plain"], max_model_len=70)
    info = runner.info
    assert (info.max_encode_len, info.max_model_len, info.vocab_size) == (70, 0, 96)
    assert (info.kv_cache.groups, info.kv_cache_bytes, info.kv_cache_dtype) == ([], 0, "none")
    assert info.tasks == ("embed",)
    assert info.num_parameters == sum(weight.numel() for weight in Reference().weights.values())


def test_refusals(checkpoint: Path) -> None:
    with pytest.raises(RunnerError, match="max_model_len = 81"):
        start(checkpoint, max_model_len=81)
    with pytest.raises(RunnerError, match="one rank"):
        start(checkpoint, tensor_parallel_size=2)
    runner = start(checkpoint, **FORMATS["plain"])
    with pytest.raises(RunnerError, match="does not fit"):
        runner.submit(batch_of([[1] * 80] * 4))
    with pytest.raises(RunnerError, match="does not generate"):
        runner.submit(StepPlan(step=1, slots=[], rows=[], num_tokens=0, num_logit_rows=0))
