"""Which backend runs is chosen once, answered by it alone, and asked by nobody above the kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import app
from app.kernels import dispatch
from app.kernels.backend import Backend, NativeBackend, ReferenceBackend, TritonBackend, choose_backend
from app.kernels.dispatch import Mode
from app.kernels.linear.pack import new_packed_weight
from app.kernels.pages import KVPages, StatePages
from app.kernels.recorders import GraphRecorder, ProgramRecorder
from app.kernels.types import ActFormat, LayerKVCache, LayerState, LinearWeight
from tests.kernels.delta import native_isas

CPU, META = torch.device("cpu"), torch.device("meta")
PAGES = KVPages(num_heads=2, head_dim=32, dtype=torch.int8)
STATES = StatePages(conv_inputs=3, channels=10, num_heads=2, k_dim=8, v_dim=4, dtype=torch.bfloat16)
PLAIN = LinearWeight(torch.zeros(4, 4))
native = pytest.mark.skipif(not native_isas(), reason="no native kernels here")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    dispatch.configure(Mode.AUTO, 1)


def chosen(mode: Mode, device: torch.device = CPU) -> Backend:
    dispatch.configure(mode, 1)
    return choose_backend(device)


@native
def test_native() -> None:
    backend = chosen(Mode.AUTO)
    assert isinstance(backend, NativeBackend)
    packed = new_packed_weight(32, 8, torch.int8, bias=False, gate_up=False)
    assert (backend.name(packed), backend.name(PLAIN)) == (dispatch.isa(), "torch")
    assert backend.shortcoming is None
    assert isinstance(backend.recorder(packed), ProgramRecorder)
    assert backend.recorder(PLAIN) is None, "linear layers of plain weights run in torch"
    assert backend.refuses_weights(6, torch.int8) is not None
    assert backend.refuses_weights(6, torch.bfloat16) is None
    assert backend.packs_pages(PAGES, 16, heads_per_kv=4)
    assert not backend.packs_pages(PAGES, 12, heads_per_kv=4)
    assert (backend.sample_workspace(4, 100), backend.split_workspace(4, [(2, 1, 8)])) == (None, None)


def test_reference() -> None:
    backend = chosen(Mode.REFERENCE)
    assert isinstance(backend, ReferenceBackend)
    assert (backend.name(PLAIN), backend.shortcoming) == ("torch", "TUILI_KERNELS=reference")
    assert backend.refuses_weights(64, torch.bfloat16) is not None
    assert not backend.packs_pages(PAGES, 16, heads_per_kv=1)
    assert (backend.recorder(PLAIN), backend.int8_input) == (None, ActFormat.INT8)


@pytest.mark.parametrize(("mode", "device"), [(Mode.INTERPRET, CPU), (Mode.AUTO, META)])
def test_triton(mode: Mode, device: torch.device) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    backend = chosen(mode, device)
    assert isinstance(backend, TritonBackend)
    assert (backend.name(PLAIN), backend.shortcoming, backend.int8_input) == ("triton", None, ActFormat.INT8_TOKEN)
    assert isinstance(backend.recorder(PLAIN), GraphRecorder)
    assert backend.sample_workspace(4, 100) is not None
    assert backend.split_workspace(4, []) is None
    largest = backend.split_workspace(4, [(2, 1, 8), (4, 1, 8)])
    assert largest is not None
    assert largest.numel() == 2 * backend.split_workspace(4, [(2, 1, 8)]).numel()  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.REFERENCE, Mode.INTERPRET])
def test_pages_take_the_bytes_that_are_planned(mode: Mode) -> None:
    if mode is Mode.INTERPRET:
        pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    backend = chosen(mode)
    blocks = 5 + backend.pads_steps
    kv = backend.allocate_pages(PAGES, 5, 16)
    assert isinstance(kv, LayerKVCache)
    assert kv.scale is not None
    assert kv.values.shape == (blocks, 2, 2, 16, 32)
    assert kv.values.nbytes + kv.scale.nbytes == blocks * PAGES.bytes_per_block(16)
    state = backend.allocate_pages(STATES, 5, 16)
    assert isinstance(state, LayerState)
    assert (state.conv.shape, state.recurrent.shape) == ((blocks, 3, 10), (blocks, 2, 8, 4))
    assert state.conv.nbytes + state.recurrent.nbytes == blocks * STATES.bytes_per_block(16)
    assert (state.conv.dtype, state.recurrent.dtype, state.block_size) == (torch.bfloat16, torch.float32, 16)
    assert state.largest is state.recurrent


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.REFERENCE])
def test_a_state_may_be_a_convolutions_inputs_alone(mode: Mode) -> None:
    backend, shape = chosen(mode), StatePages(conv_inputs=2, channels=10, dtype=torch.bfloat16)
    state = backend.allocate_pages(shape, 5, 16)
    assert isinstance(state, LayerState)
    assert (state.conv.shape, state.recurrent.numel()) == ((5, 2, 10), 0)
    assert state.conv.nbytes == 5 * shape.bytes_per_block(16)
    assert state.largest is state.conv


# -- nobody above asks ------------------------------------------------------------------------------------------

OF_THE_PROCESS = {"configure", "Mode", "FallbackError"}
"""What of ``dispatch`` is for others than the ops: how the process is set up, and what it may end with."""
KINDS = {
    "NativeBackend",
    "TritonBackend",
    "ReferenceBackend",
    "PackedWeight",
    "BlockWeight",
    "NativeWeight",
    "LinearWeight",
    "LayerKVCache",
    "LayerState",
}
RECORDERS = {"ProgramRecorder", "GraphRecorder"}


def questions(path: Path) -> Iterator[str]:
    """What a file asks or imports that only kernels may know."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "app.kernels.dispatch":
            yield from ({alias.name for alias in node.names} - OF_THE_PROCESS)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dispatch":
            yield from ({node.attr} - OF_THE_PROCESS)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            yield from (
                {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)} & (KINDS | RECORDERS)
            )
        elif isinstance(node, ast.Attribute) and node.attr in {"runs_triton", "runs_triton_on"}:
            yield node.attr


def test_no_room_but_kernels_asks_which_backend_runs() -> None:
    root = Path(app.__path__[0])
    asked = {
        (path.relative_to(root).as_posix(), question)
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] != "kernels"
        for question in questions(path)
    }
    assert asked == {("runner/execution/choose.py", recorder) for recorder in RECORDERS}
