"""Every instruction set keeps to itself in the library, and AVX2's kernels run on a machine that has no more."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from app.contract.request import SamplingParams
from app.kernels import dispatch
from app.kernels.add_norm import add_norm
from app.kernels.dispatch import Call
from app.kernels.embed import embed
from app.kernels.gelu_mul import gelu_mul
from app.kernels.head_norm_add import head_norm_add
from app.kernels.layer_norm import layer_norm
from app.kernels.linear import Activation, linear
from app.kernels.linear.pack import new_packed_weight, pack_rows
from app.kernels.lora import LowRank, new_packed_low_rank, pack_low_rank
from app.kernels.native.abi import ARGS
from app.kernels.native.library import ISAS, library
from app.kernels.native.program import Program
from app.kernels.norm_add_norm import norm_add_norm
from app.kernels.paged_attention import paged_attention
from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.scale_logits import scale_logits
from app.kernels.types import Act, StepArena
from app.layers.config import ClampedSwiglu, ExpertsConfig, GroupsConfig, LatentConfig, Rope
from app.layers.experts import Experts
from app.layers.latent_attention import LatentAttention
from app.layers.rotary import rope_table
from app.quant.placement import Placement, WeightFormat
from app.runner.start import make_runner
from tests.kernels.blocks import TYPES, make_block_weight
from tests.kernels.latents import latent_sequences
from tests.kernels.util import make_pages, packed, poisoned, poisoned_act, quantized, randn
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, discard, engine_config, run

HERE = Path(__file__).parent
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here")
needs_kernels = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")
STEP_FORMAT = "=6i40x"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = (dispatch._state.mode, dispatch._state.threads, dispatch._state.isa)
    yield
    dispatch.configure(*before)


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_objects_of_an_instruction_set_share_nothing_but_their_kinds(tmp_path: Path) -> None:
    """Of a weak symbol the linker keeps one copy, which may be the one that an older machine cannot run.

    Built without optimisation, so that nothing is hidden by having been inlined.
    """
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", str(tmp_path / "objects")]
    subprocess.run(
        [*command, "--build-lib", str(tmp_path / "library")],
        cwd=HERE.parents[1],
        env={**os.environ, "TUILI_CXXFLAGS": "-O0", "TUILI_REQUIRE_NATIVE": "1"},
        check=True,
        timeout=120,
    )
    kinds = 0
    for isa in ISAS:
        for path in (tmp_path / "objects" / isa).rglob("*.o"):
            lines = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
            symbols = [line.split()[-2:] for line in lines]
            assert [symbol for symbol in symbols if symbol[0] in "vVwWuC"] == [], "weak or shared"
            defined = [name for kind, name in symbols if kind.isupper() and kind != "U"]
            assert [name for name in defined if not (name.startswith("tuili_kind_") and name.endswith(f"_{isa}"))] == []
            kinds += len(defined)
    assert kinds == len(ISAS) * len(ARGS)


class Tape:
    """Programs as they run, each with the memory that it works on, before and after."""

    def __init__(self) -> None:
        self.runs: list[tuple[bytes, list[bytes | None], list[int]]] = []
        self.names: set[str] = set()

    def program(self) -> type[Program]:
        """What to run in place of :class:`Program`."""
        tape = self

        class Taped(Program):
            def run(self, **fields: Any) -> None:
                storages = _storages(self._calls)
                before = _pack(self._calls, storages, fields)
                super().run(**fields)
                tape.runs.append(
                    (
                        before,
                        [_result(storage, self._calls) for storage in storages],
                        [storage.numel() for storage in storages],
                    )
                )
                tape.names.update(self.names)

        return Taped


def _storages(calls: list[Call]) -> list[Tensor]:
    """The memory behind the calls' tensors, as bytes, each once."""
    found: dict[int, Tensor] = {}
    for call in calls:
        for tensor in call.tensors:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage)
    return list(found.values())


def _contents(storage: Tensor) -> bytes:
    return storage.numpy().tobytes()


def _result(storage: Tensor, calls: list[Call]) -> bytes | None:
    """What a program left there; None in a workspace, whose use hangs on which thread came first."""
    if any(storage.data_ptr() == getattr(call.args, "workspace", None) for call in calls):
        return None
    return _contents(storage)


def _pack(calls: list[Call], storages: list[Tensor], fields: dict[str, int | None]) -> bytes:
    """A program and its memory as tape.cpp reads them."""
    parts = [_number(len(storages))]
    for storage in storages:
        parts += [_number(storage.numel()), _contents(storage)]
    parts.append(_number(len(calls)))
    for call in calls:
        name, args = call.name.encode() + b"\0", bytes(call.args)
        parts += [_number(len(name)), name, _number(int(call.dim)), _number(len(args)), args]
        pointers = [
            (field.offset, getattr(call.args, name))
            for name, kind, *_ in call.args._fields_
            for field in [getattr(type(call.args), name)]
            if kind.__name__ == "c_void_p" and getattr(call.args, name)
        ]
        parts.append(_number(len(pointers)))
        for offset, address in pointers:
            parts += [_number(offset), *map(_number, _place(address, storages))]
    names = ("tokens", "rows", "logits", "samples", "max_seq_len", "max_query_len")
    parts.append(struct.pack(STEP_FORMAT, *(fields.get(name, 0) for name in names)))
    return b"".join(parts)


def _number(value: int) -> bytes:
    return struct.pack("=Q", value)


def _place(address: int, storages: list[Tensor]) -> tuple[int, int]:
    for index, storage in enumerate(storages):
        if storage.data_ptr() <= address <= storage.data_ptr() + storage.numel():
            return index, address - storage.data_ptr()
    raise AssertionError("an argument points to what its call does not hold")


def run_ops_of_other_models() -> None:
    """The ops, and the ways through ops, that a Llama does not take."""
    x, weight, out = randn(3, 70), randn(70, seed=1), poisoned_act(3, 70, torch.int8)
    norm_add_norm(x, weight, randn(3, 70, seed=2), weight, 1e-6, out)
    norm_add_norm(x, weight, randn(3, 70, seed=2), None, 1e-6, out)
    add_norm(x, None, 0.0, out)
    layer_norm(x, weight, weight, 1e-6, out, residual=randn(3, 70, seed=2))
    ids, table = torch.tensor([4, 1]), randn(5, 70, dtype=torch.bfloat16)
    embed(ids, table, poisoned(2, 70), scale=3.0, positions_T=ids, position_table_PD=table)
    for activation in Activation:
        packed_weight = new_packed_weight(70, 32, torch.bfloat16, bias=False, gate_up=activation.gated)
        pack_rows(packed_weight, 0, randn(70, 32))
        product = poisoned_act(3, 35 if activation.gated else 70)
        linear(Act(randn(3, 32, dtype=torch.bfloat16)), packed_weight, product, activation=activation)
        adapters = new_packed_low_rank(2, (35, 35), 3, packed_weight)
        for slot, part in ((0, 0), (1, 0), (1, 1)):
            pack_low_rank(adapters, slot, part, randn(3, 32), randn(35, 3))
        slots, order = torch.tensor([[1, -1, 0], [1, 2, 0]], dtype=torch.int32)
        low_rank = LowRank(adapters, slots, order, torch.zeros(3 * adapters.scratch_width))
        linear(
            Act(randn(3, 32, dtype=torch.bfloat16)), packed_weight, product, activation=activation, low_rank=low_rank
        )
    scale_logits(randn(2, 70), scale=0.5, softcap=3.0)
    gelu_mul(x, randn(3, 70, seed=2), out)
    norm_add_norm(x, weight, randn(3, 70, seed=2), weight, 1e-6, out, factor=torch.tensor([0.5]))
    head_norm_add(x, randn(14), randn(3, 70, seed=2), poisoned(3, 70), eps=1e-6, scale=0.7)
    pages, q = make_pages([20, 5], dtype=torch.int8), randn(3, 9, 64)
    qkv, slots, queries = randn(2, 9 * 64), torch.tensor([7, 3]), poisoned(2, 3, 64)
    norms: dict[str, Any] = {"q_norm": randn(3 * 64), "k_norm": randn(3 * 64), "q_scale_P": randn(5)}
    qk_norm_rope_kv_write(qkv, torch.tensor([4, 0]), None, packed(pages.kv), slots, queries, **norms)
    how: dict[str, Any] = {"scale": 0.1, "softcap": 2.0, "sinks": torch.zeros(9)}
    paged_attention(q, packed(pages.kv), pages.metadata([2, 1]), poisoned_act(3, 576), **how)


def run_blocks() -> None:
    """Products with weights in blocks of every type, and rows of them."""
    for name in TYPES:
        weight, _ = make_block_weight(name, 20, 256)
        for tokens in (1, 3):
            linear(quantized(randn(tokens, 256)), weight, poisoned_act(tokens, 20))
        embed(torch.tensor([4, 19]), weight, poisoned(2, 256))


def run_latents() -> None:
    """Attention over latents of two rows, by itself."""
    config = LatentConfig(
        num_heads=5,
        q_rank=None,
        kv_rank=40,
        nope_dim=12,
        rope_dim=10,
        v_dim=12,
        scale=0.2,
        rope=Rope(theta=100.0, width=10),
        interleaved=True,
        norm_eps=1e-6,
    )
    placement = Placement(torch.float32, torch.device("cpu"), WeightFormat.PACKED_INT8)
    rope = rope_table(config.rope, 100, placement.device)
    layer = LatentAttention(config, 72, rope_PR=rope, placement=placement)
    for seed, destination in enumerate(layer.destinations("").values()):
        destination.copy_(randn(*destination.shape, seed=seed) / 8)
    sequences = latent_sequences([70, 20], config.width, dtype=torch.bfloat16)
    meta = replace(sequences.metadata([1, 6], heads=5, rank=40), slot_mapping=torch.arange(7), split_workspace=None)
    arena = StepArena(7, placement.device)
    arena.begin(7)
    buffers = layer.layout.take(arena)
    buffers.x.values.copy_(randn(7, 72))
    assert buffers.x.scale is not None
    buffers.x.scale.fill_(0.1)
    sequences.pages.values.nan_to_num_()
    layer(buffers, Act(torch.empty(7, 72)), torch.arange(7), sequences.pages, meta)


FORMATS = {
    "int8": ("qwen3_biases", {"quantization": "int8", "kv_cache_dtype": "int8"}),
    "bfloat16": ("mistral", {"dtype": "bfloat16"}),
}


SILU_EXPERTS = ExpertsConfig(count=5, chosen=2, width=36)
CLAMPED_EXPERTS = msgspec.structs.replace(
    SILU_EXPERTS, activation=ClampedSwiglu(alpha=2.0, limit=1.0), bias=True, router_bias=True
)


def run_experts(weight_format: WeightFormat) -> None:
    """Layers of experts over a few tokens, by themselves: by the plain rule, with biases and a clamped gate, and by a
    rule that has all there is."""
    int8 = weight_format is WeightFormat.PACKED_INT8
    dtype = torch.float32 if int8 else torch.bfloat16
    placement = Placement(dtype, torch.device("cpu"), weight_format)
    grouped = ExpertsConfig(
        count=12,
        chosen=3,
        width=36,
        scoring="sigmoid" if int8 else "softmax",
        scale=2.5,
        least_sum=0.1,
        sum_offset=0.1,
        correction=True,
        groups=GroupsConfig(count=4, chosen=2, best=2),
        shared_width=68,
        shared_gate=True,
    )
    for config in (SILU_EXPERTS, CLAMPED_EXPERTS, grouped):
        call_experts(Experts(config, 72, placement=placement), dtype)


def call_experts(layer: Experts, dtype: torch.dtype) -> None:
    for seed, destination in enumerate(layer.destinations("").values()):
        destination.copy_(randn(*destination.shape, seed=seed) / 8)
    arena = StepArena(9, torch.device("cpu"))
    arena.begin(9)
    buffers = layer.layout.take(arena)
    buffers.x.values.copy_(randn(9, 72))
    layer(buffers, Act(torch.empty(9, 72, dtype=dtype)))


@needs_compiler
@needs_kernels
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64 here")
@pytest.mark.parametrize("name", FORMATS)
def test_avx2_on_a_machine_that_has_no_more(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ops of whole steps give the bits under an emulated Haswell that their AVX2 kernels give here."""
    variant, formats = FORMATS[name]
    tape = Tape()
    monkeypatch.setattr("app.kernels.dispatch.best_isa", lambda: "avx2")
    monkeypatch.setattr("app.kernels.dispatch.Program", tape.program())
    monkeypatch.setattr("app.kernels.recorders.Program", tape.program())
    checkpoint = save(make_reference(variant), tmp_path / "checkpoint")
    limits = {"num_blocks": 12, "max_num_seqs": 3, "max_num_batched_tokens": 32, "max_logit_rows": 32}
    runner = make_runner(engine_config(checkpoint, kernels="strict", threads=2, **formats, **limits), discard)
    assert runner.info.kernels == "avx2"
    sampled = SamplingParams(top_p=0.9, top_k=30, repetition_penalty=1.2)
    requests = [
        Request(0, list(range(3, 43)), [3, 1, 4], SamplingParams(temperature=0.0, logprobs=3)),
        Request(1, [7], [5, 9], sampled, seed=3),
    ]
    run(runner, requests, 4, chunk=29)
    run_ops_of_other_models()
    run_experts(WeightFormat.PACKED_INT8 if name == "int8" else WeightFormat.PACKED_BF16)
    run_latents()
    run_blocks()
    driver = tmp_path / "tape"
    source = HERE / "native" / "tape.cpp"
    subprocess.run(["g++", "-std=c++17", "-O1", str(source), "-o", str(driver), "-ldl"], check=True, timeout=60)
    assert len(tape.runs) >= 5
    for before, after, sizes in tape.runs:
        path = tmp_path / "program"
        path.write_bytes(before)
        command = ["qemu-x86_64", "-cpu", "Haswell", str(driver), library()._name, "avx2", "2", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "avx2\n"), done.stderr  # qemu warns of what it lacks
        left, offset = path.read_bytes(), 0
        for index, expected in enumerate(after):
            size = sizes[index]
            assert expected in (None, left[offset : offset + size])
            offset += size
        assert offset == len(left)
    other_models = {"causal_conv", "gated_delta", "gated_norm", "packed_attention", "pool", "sigmoid_mul"}
    other_models |= {"gated_conv", "selective_scan", "silu_gate"}
    unused = {"int8": {"gather"}, "bfloat16": set[str]()}
    assert set(ARGS) - tape.names == unused[name] | other_models
