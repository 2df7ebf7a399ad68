"""Packed weights on the disk: whole or not used."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from app.kernels import dispatch
from app.kernels.linear.pack import unpack
from app.kernels.types import PackedExperts, PackedWeight
from app.quant import cache as cache_module
from app.quant.cache import PackedCache
from app.quant.destination import Destination, Interleaved, Scaled, Tee
from app.quant.packed_file import read_header
from app.quant.placement import Placement, WeightFormat

N, K = 70, 24
pytestmark = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    return file


class Model:
    """A tied head, a layer with a bias, experts and a norm; zeros until filled."""

    def __init__(self, weight_format: WeightFormat) -> None:
        placement = Placement(torch.float32, torch.device("cpu"), weight_format)
        self.table = torch.zeros(N, K, dtype=torch.bfloat16)
        self.norm = torch.zeros(K)
        self.head = placement.new_weight(N, K, bias=False)
        self.layer = placement.new_weight(2 * N, K, bias=True, gate_up=True)
        self.experts = placement.new_experts(3, 20, K)

    @property
    def destinations(self) -> dict[str, Destination]:
        bias = self.layer.bias(0, N)
        assert bias is not None
        return {
            "embed": Tee(self.table, self.head.rows(0, N)),
            "gate": self.layer.rows(0, N),
            "gate.bias": bias,
            "up": self.layer.rows(N, 2 * N),
            **{f"gate_up.{i}": self.experts.gate_up(i, 0, 40) for i in range(3)},
            **{f"down.{i}": self.experts.down(i) for i in range(3)},
            "norm": self.norm,
        }

    def fill(self) -> Model:
        torch.manual_seed(1)
        for destination in self.destinations.values():
            destination.copy_(torch.randn(tuple(destination.shape)))
        return self

    def tensors(self) -> list[torch.Tensor]:
        weights, experts = [self.head.weight, self.layer.weight], self.experts.weight
        assert isinstance(experts, PackedExperts)
        parts = [_plain(weight) for weight in (*weights, *experts.gate_up, *experts.down)]
        return [self.table, self.norm, *itertools.chain(*parts)]


def _plain(weight: object) -> list[torch.Tensor]:
    assert isinstance(weight, PackedWeight)
    plain = unpack(weight)
    return [tensor for tensor in (plain.values, plain.scale, plain.bias) if tensor is not None]


def test_a_file_says_what_it_was_made_of(source: Path) -> None:
    cache = packed(source)
    cache.save(Model(WeightFormat.PACKED_INT8).fill().destinations)
    with FileIO(cache.path) as file:
        header = read_header(file)
    assert (header.sources, header.weight_format) == ([str(source)], "packed int8")


def packed(source: Path, name: str = "packed int8") -> PackedCache:
    return PackedCache(source.parent / "packed", [source], name)


@pytest.mark.parametrize("weight_format", [WeightFormat.PACKED_INT8, WeightFormat.PACKED_BF16])
def test_weights_come_back_as_they_were(source: Path, weight_format: WeightFormat) -> None:
    model, again = Model(weight_format).fill(), Model(weight_format)
    packed(source).save(model.destinations)
    assert packed(source).restore(again.destinations)
    assert all(a.equal(b) for a, b in zip(model.tensors(), again.tensors(), strict=True))


def test_there_is_nothing_at_first(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not packed(source).restore(Model(WeightFormat.PACKED_INT8).destinations)
    assert not caplog.records


def test_other_weights_take_the_place_of_the_old(source: Path) -> None:
    model = Model(WeightFormat.PACKED_INT8).fill()
    packed(source).save(model.destinations)
    os.utime(source, ns=(0, 12345))
    assert not packed(source).restore(model.destinations)
    packed(source).save(model.destinations)
    assert packed(source).restore(model.destinations)
    assert len(list((source.parent / "packed").glob("*.packed"))) == 1


def test_another_format_is_another_file(source: Path) -> None:
    model = Model(WeightFormat.PACKED_INT8).fill()
    packed(source).save(model.destinations)
    assert not packed(source, "packed bfloat16").restore(Model(WeightFormat.PACKED_BF16).destinations)


def test_a_model_of_another_shape_is_refused(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Model(WeightFormat.PACKED_INT8).fill()
    packed(source).save(model.destinations)
    assert not packed(source).restore({"norm": torch.zeros(K + 1)})
    assert "another shape" in caplog.text


def _flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    "damage",
    [_flip, lambda data: data[:-1], lambda data: data[:20], lambda data: b"x" + data, lambda _: b""],
    ids=["bit", "short", "header", "shifted", "empty"],
)
def test_a_damaged_file_is_named_and_made_anew(
    source: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    model = Model(WeightFormat.PACKED_INT8).fill()
    stored = packed(source)
    stored.save(model.destinations)
    stored.path.write_bytes(damage(stored.path.read_bytes()))
    assert not stored.restore(Model(WeightFormat.PACKED_INT8).destinations)
    assert str(stored.path) in caplog.text
    stored.save(model.destinations)
    assert stored.restore(model.destinations)


def test_a_full_disk_is_no_reason_to_stop(
    source: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "_write_all", full)
    stored = packed(source)
    stored.save(Model(WeightFormat.PACKED_INT8).destinations)
    assert "No space left" in caplog.text
    assert [path.suffix for path in stored.path.parent.iterdir()] in ([], [".lock"])


def test_a_process_that_writes_is_left_alone(source: Path) -> None:
    stored = packed(source)
    stored.path.parent.mkdir()
    with FileLock(stored.path.with_suffix(".lock")):
        stored.save(Model(WeightFormat.PACKED_INT8).destinations)
    assert not stored.path.exists()


def test_weights_of_a_config_with_another_factor_are_others(source: Path) -> None:
    def destinations(factor: float | None, model: Model) -> dict[str, Destination]:
        rows: list[Destination] = [model.layer.rows(0, N), model.layer.rows(N, 2 * N)]
        if factor is not None:
            rows[1] = Scaled(rows[1], factor)
        return {"gate_up": Interleaved(rows)}

    def model() -> Model:
        return Model(WeightFormat.PACKED_INT8)

    packed(source).save(destinations(0.5, model()))
    assert packed(source).restore(destinations(0.5, model()))
    assert not packed(source).restore(destinations(0.25, model()))
    assert not packed(source).restore(destinations(None, model()))


def test_weights_of_a_config_with_other_heads_are_others(source: Path) -> None:
    """Whose fused rows, as many, go elsewhere."""

    def destinations(heads: int) -> dict[str, Destination]:
        layer = Model(WeightFormat.PACKED_INT8).layer
        return {"gate_up": Interleaved([layer.rows(0, N), layer.rows(N, 2 * N)], heads)}

    packed(source).save(destinations(7))
    assert packed(source).restore(destinations(7))
    assert not packed(source).restore(destinations(2))
    assert not packed(source).restore(destinations(1))
