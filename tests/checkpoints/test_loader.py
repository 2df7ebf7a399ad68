from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from app.checkpoints.loader import WeightError, iter_weights, load_weights
from app.checkpoints.safetensors_header import MAX_VALUES, read_safetensors_header
from app.kernels.int8 import quantize
from app.quant.destination import Extent, Part
from tests.store.tiny import random_weights, shapes, write_directory, write_gguf


def load(
    files: list[Path],
    wanted: dict[str, tuple[int, ...]],
    *,
    ignore: Callable[[str], bool] = lambda _: False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    destinations = {name: torch.full(shape, torch.nan, dtype=dtype) for name, shape in wanted.items()}
    load_weights(destinations, files, ignore=ignore, progress=lambda _done, _total: None)
    return destinations


def test_every_tensor_of_every_shard_is_copied(tmp_path: Path) -> None:
    weights = random_weights()
    directory = write_directory(tmp_path, weights, shards=3)
    loaded = load(sorted(directory.glob("*.safetensors")), shapes())
    for name, values in weights.items():
        assert torch.equal(loaded[name], torch.from_numpy(values)), name


def test_destinations_may_be_views_into_fused_tensors(tmp_path: Path) -> None:
    a, b = torch.randn(3, 4), torch.randn(2, 4)
    save_torch_file({"a": a, "b": b}, tmp_path / "w.safetensors")
    fused = torch.zeros(5, 4)
    load_weights(
        {"a": fused[:3], "b": fused[3:]},
        [tmp_path / "w.safetensors"],
        ignore=lambda _: False,
        progress=lambda _done, _total: None,
    )
    assert torch.equal(fused, torch.cat([a, b]))


@pytest.mark.parametrize("extent", [Extent(0, 2, 5), Extent(1, 3, 7), Extent(1, 0, 1)])
def test_a_part_gets_its_extent(tmp_path: Path, extent: Extent) -> None:
    file, whole = tmp_path / "w.safetensors", torch.randn(6, 8)
    values, scale = quantize(torch.randn(6, 8))
    save_torch_file({"w": whole, "q": values, "q_scale": scale}, file)
    parts = {name: Part(extent.of(torch.zeros(6, 8)).clone(), extent, whole.shape[extent.dim]) for name in ("w", "q")}
    load_weights(parts, [file], ignore=lambda _: False, progress=lambda _done, _total: None)
    for name, tensor in (("w", whole), ("q", values * scale[:, None])):
        kept = parts[name].destination
        assert isinstance(kept, torch.Tensor)
        assert kept.equal(extent.of(tensor))


def test_a_part_of_another_whole_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_torch_file({"w": torch.randn(6)}, file)
    part = Part(torch.zeros(3), Extent(0, 0, 3), 7)
    with pytest.raises(WeightError, match=r"tensor 'w' has shape \(6,\), the model expects \(7,\)"):
        load_weights({"w": part}, [file], ignore=lambda _: False, progress=lambda _done, _total: None)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_dtype_is_converted_on_the_way(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    values = torch.randn(63, 7).to(stored)
    save_torch_file({"w": values}, tmp_path / "w.safetensors")
    loaded = load([tmp_path / "w.safetensors"], {"w": (63, 7)}, dtype=wanted)
    assert torch.equal(loaded["w"], values.to(wanted))


def test_progress_counts_bytes_up_to_the_total(tmp_path: Path) -> None:
    directory = write_directory(tmp_path)
    seen: list[tuple[int, int]] = []
    destinations = {name: torch.empty(shape) for name, shape in shapes().items()}
    load_weights(
        destinations,
        [directory / "model.safetensors"],
        ignore=lambda _: False,
        progress=lambda done, total: seen.append((done, total)),
    )
    total = sum(tensor.nbytes for tensor in destinations.values())
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_missing_tensors_are_named_up_to_a_handful(tmp_path: Path) -> None:
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightError, match=r"w\.safetensors: tensor 'b' missing"):
        load([tmp_path / "w.safetensors"], {"a": (1,), "b": (1,)})
    wanted: dict[str, tuple[int, ...]] = {f"t{i}": (1,) for i in range(8)}
    with pytest.raises(WeightError, match=r"tensors 't0', 't1', 't2', 't3', 't4' and 3 more missing"):
        load([tmp_path / "w.safetensors"], wanted)


def test_left_over_tensor_is_an_error_unless_ignored(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": np.zeros(1, np.float32), "x": np.zeros(1, np.float32)}, file)
    with pytest.raises(WeightError, match=r"w\.safetensors: tensor 'x' left over"):
        load([file], {"a": (1,)})
    assert load([file], {"a": (1,)}, ignore=lambda name: name == "x")["a"].item() == 0.0


def test_wrong_shape_names_both_and_copies_nothing(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": np.zeros((2,), np.float32), "b": np.zeros((2, 3), np.float32)}, file)
    destinations = {"a": torch.ones(2), "b": torch.ones(3, 2)}
    with pytest.raises(WeightError, match=r"tensor 'b' has shape \(2, 3\), the model expects \(3, 2\)"):
        load_weights(destinations, [file], ignore=lambda _: False, progress=lambda _done, _total: None)
    assert destinations["a"].tolist() == [1.0, 1.0]


def test_tensor_in_two_files_is_an_error(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightError, match=r"two\.safetensors: tensor 'a' is also in .*one\.safetensors"):
        load([tmp_path / "one.safetensors", tmp_path / "two.safetensors"], {"a": (1,)})


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(4, np.int8)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightError, match="tensor 'a' has type I8 and no scale"):
        load([tmp_path / "w.safetensors"], {"a": (4,)})


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    with pytest.raises(WeightError, match=r"pytorch_model\.bin: only \.safetensors and \.gguf files are read"):
        load([file], {"a": (1,)})  # not even its existence is looked at


@pytest.mark.parametrize("kept", [0, 7, 100])
def test_truncated_header(tmp_path: Path, kept: int) -> None:
    file = write_directory(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightError, match=r"model\.safetensors: truncated: "):
        list(iter_weights([file]))


def test_truncated_data_names_file_and_tensor(tmp_path: Path) -> None:
    file = write_directory(tmp_path) / "model.safetensors"
    last = max(read_safetensors_header(file), key=lambda entry: entry.offset)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightError, match=rf"model\.safetensors: truncated: tensor '{last.name}' ends at byte"):
        load([file], shapes())


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"absent\.safetensors: No such file or directory"):
        list(iter_weights([tmp_path / "absent.safetensors"]))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[]", "not a JSON object"),
        ("{", "bad header"),
        ("[" * 100_000, "bad header"),
        ('{"a": 3}', "tensor 'a'"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}', "stands twice"),
        ('{"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}', "unknown type 'F33'"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "but has bytes 0 to 4"),
        ('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "tensor 'a'"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', "tensor 'a'"),
        ('{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}', "but has bytes 0 to 0"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [1000000, 1000004]}}', "truncated: tensor 'a'"),
        (
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
            ' "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
            "tensor 'b' overlaps 'a'",
        ),
    ],
)
def test_malformed_headers(tmp_path: Path, header: str, message: str) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(16))
    with pytest.raises(WeightError, match=r"w\.safetensors: ") as caught:
        list(iter_weights([file]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_header_of_too_many_values_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    header = b'{"t":[' + b"[]," * (MAX_VALUES // 2) + b"[]]}"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(WeightError, match=r"w\.safetensors: bad header: more values than the \d+ that are read"):
        read_safetensors_header(file)


def test_header_length_beyond_the_cap_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(WeightError, match="bad header: 9223372036854775808 bytes long"):
        list(iter_weights([file]))


def test_gguf_and_safetensors_of_one_model_load_alike(tmp_path: Path) -> None:
    weights = random_weights()
    loaded = load([write_gguf(tmp_path / "m.gguf", weights)], shapes())
    for name, values in weights.items():
        assert torch.equal(loaded[name], torch.from_numpy(values)), name
