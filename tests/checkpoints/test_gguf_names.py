"""Tensors that a family's GGUF files hold in another form come back in the checkpoint's, whole and in extents."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from app.models import architectures
from app.models.architecture import Architecture
from app.quant.destination import Extent

ROW = Architecture(title="Odd", examples="", module="tests.checkpoints.odd", hf=("OddForCausalLM",), gguf=("odd",))
EXPERTS, N, K = 3, 5, 32


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, StoredTensor], dict[str, Tensor]]:
    """A file's tensors as they are listed, and what was written by GGUF name."""
    monkeypatch.setattr(architectures, "ARCHITECTURES", (*architectures.ARCHITECTURES, ROW))
    torch.manual_seed(0)
    shapes = {
        "token_embd.weight": (N, K),
        "blk.1.attn_norm.weight": (K,),
        "blk.1.attn_qkv.weight": (N, K),
        "blk.1.attn_qkv.bias": (N,),
        "blk.1.ffn_gate_exps.weight": (EXPERTS, N, K),
        "blk.1.ssm_dt.bias": (N,),
        "blk.1.ssm_a": (N,),
    }
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "odd")
    for name, tensor in values.items():
        kind = Type.Q8_0 if name.endswith("exps.weight") else Type.F32
        raw = gguf.quants.quantize(tensor.numpy(), kind)
        if kind is Type.Q8_0:
            values[name] = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(raw, kind)))
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {tensor.name: tensor for tensor in iter_weights([tmp_path / "m.gguf"])}, values


def test_tensors_come_in_the_checkpoints_form(
    stored: tuple[dict[str, StoredTensor], dict[str, Tensor]],
) -> None:
    tensors, values = stored
    expected = {
        "wte.weight": values["token_embd.weight"],
        "h.1.ln_1.weight": values["blk.1.attn_norm.weight"] - 1,
        "h.1.attn.c_attn.weight": values["blk.1.attn_qkv.weight"].T,
        "h.1.attn.c_attn.bias": values["blk.1.attn_qkv.bias"],
        "h.1.mixer.dt_bias": values["blk.1.ssm_dt.bias"],
        "h.1.mixer.A_log": values["blk.1.ssm_a"],
    }
    stack = values["blk.1.ffn_gate_exps.weight"]
    expected |= {f"h.1.mlp.experts.{i}.gate_proj.weight": stack[i] for i in range(EXPERTS)}
    assert {name: tensor.read().tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    assert sum(tensor.nbytes for name, tensor in tensors.items() if "experts" in name) == stack.numel() // 32 * 34


@pytest.mark.parametrize("extent", [Extent(0, 7, 20), Extent(1, 1, 4)])
def test_an_extent_is_of_the_checkpoints_tensor(
    stored: tuple[dict[str, StoredTensor], dict[str, Tensor]], extent: Extent
) -> None:
    tensors, values = stored
    whole = values["blk.1.attn_qkv.weight"].T
    assert torch.equal(tensors["h.1.attn.c_attn.weight"].read(extent), extent.of(whole))


def test_an_architecture_nobody_knows_is_an_error(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "odd")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightError, match=r"m\.gguf: architecture 'odd' is not supported; .*`tuili models`"):
        list(iter_weights([tmp_path / "m.gguf"]))
