"""GGUF tensors against formulas of their own, and the header reader against the gguf package's."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from app.checkpoints.gguf_header import MAX_ELEMENTS, read_gguf_header
from app.checkpoints.loader import WeightError, iter_weights
from app.models.architectures import find_gguf
from app.quant.destination import Extent
from tests.store.tiny import HEADS, HIDDEN, KV_HEADS, permute, random_weights, write_gguf

Floats = NDArray[np.float32]


def read(file: Path) -> dict[str, torch.Tensor]:
    return {stored.name: stored.read() for stored in iter_weights([file])}


def write_raw(file: Path, raw: NDArray[np.uint8], kind: Type, name: str = "token_embd.weight") -> Path:
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (Type.F32, 0.0),
        (Type.F16, 2**-10),
        (Type.BF16, 2**-7),
        (Type.Q8_0, 1 / 127),
        (Type.Q5_0, 1 / 15),
        (Type.Q5_1, 1 / 15),
        (Type.Q4_0, 1 / 7),
        (Type.Q4_1, 1 / 7),
    ],
)
def test_simple_types_come_back_within_their_step(tmp_path: Path, kind: Type, step: float) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weights = random_weights()
    loaded = read(write_gguf(tmp_path / "m.gguf", weights, types={name: kind}))[name]
    expected = torch.from_numpy(weights[name])
    assert loaded.dtype == torch.float32
    assert loaded.shape == expected.shape
    assert (loaded - expected).abs().max() <= step * expected.abs().max()


def test_rows_beyond_one_chunk_are_all_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8200, 64)).astype(np.float32)
    raw = gguf.quants.quantize(values, Type.Q8_0)
    loaded = read(write_raw(tmp_path / "m.gguf", raw, Type.Q8_0))["model.embed_tokens.weight"]
    assert (loaded - torch.from_numpy(values)).abs().max() < 0.03


def halves(raw: bytes) -> list[float]:
    return [float(x) for x in np.frombuffer(raw, dtype="<f2")]


def scale_and_min(scales: bytes, j: int) -> tuple[int, int]:
    """The 6-bit scale and minimum of sub-block j of a Q4_K or Q5_K block."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return (scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4), (scales[j + 4] >> 4) | (scales[j] >> 6 << 4)


def q4_k(block: bytes) -> list[float]:
    d, dmin = halves(block[:4])
    scales, nibbles = block[4:16], block[16:144]
    out = []
    for j in range(8):
        scale, minimum = scale_and_min(scales, j)
        values = [(byte >> 4 * (j % 2)) & 15 for byte in nibbles[j // 2 * 32 : j // 2 * 32 + 32]]
        out += [d * scale * value - dmin * minimum for value in values]
    return out


def q5_k(block: bytes) -> list[float]:
    d, dmin = halves(block[:4])
    scales, high, nibbles = block[4:16], block[16:48], block[48:176]
    out = []
    for j in range(8):
        scale, minimum = scale_and_min(scales, j)
        for i in range(32):
            low = (nibbles[j // 2 * 32 + i] >> 4 * (j % 2)) & 15
            out.append(d * scale * (low + 16 * ((high[i] >> j) & 1)) - dmin * minimum)
    return out


def q6_k(block: bytes) -> list[float]:
    low, high = block[:128], block[128:192]
    scales = np.frombuffer(block[192:208], dtype=np.int8)
    (d,) = halves(block[208:210])
    out = []
    for n in range(256):
        half, quarter, i = n // 128, n % 128 // 32, n % 32
        nibble = (low[64 * half + 32 * (quarter % 2) + i] >> 4 * (quarter // 2)) & 15
        bits = (high[32 * half + i] >> 2 * quarter) & 3
        out.append(d * int(scales[n // 16]) * ((nibble | bits << 4) - 32))
    return out


@pytest.mark.parametrize(
    ("kind", "formula", "half_offsets"),
    [(Type.Q4_K, q4_k, (0, 2)), (Type.Q5_K, q5_k, (0, 2)), (Type.Q6_K, q6_k, (208,))],
)
def test_k_quants_match_their_definition(tmp_path: Path, kind: Type, formula: Any, half_offsets: Any) -> None:
    rows, blocks = 17, 3
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (rows, blocks, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for offset in half_offsets:  # scales that are finite numbers
        raw[..., offset : offset + 2] = rng.uniform(-1, 1, (rows, blocks, 1)).astype("<f2").view(np.uint8)
    file = write_raw(tmp_path / "m.gguf", raw.reshape(rows, -1), kind)
    loaded = read(file)["model.embed_tokens.weight"]
    expected = torch.tensor([[x for block in row for x in formula(block.tobytes())] for row in raw])
    torch.testing.assert_close(loaded, expected, rtol=1e-5, atol=1e-5)


def test_llama_queries_and_keys_are_unpermuted_biases_too(tmp_path: Path) -> None:
    weights = random_weights()
    name = "model.layers.0.self_attn.q_proj.weight"
    bias = np.arange(HIDDEN, dtype=np.float32)
    permuted = {"blk.0.attn_q.bias": permute(bias, HEADS)}
    llama = read(write_gguf(tmp_path / "l.gguf", weights, tensors=permuted))
    assert torch.equal(llama[name], torch.from_numpy(weights[name]))
    assert llama["model.layers.0.self_attn.q_proj.bias"].tolist() == bias.tolist()
    assert permuted["blk.0.attn_q.bias"].tolist() != bias.tolist()


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_qwen_rows_stay_as_they_are(tmp_path: Path, arch: str) -> None:
    weights = random_weights()
    loaded = read(write_gguf(tmp_path / "q.gguf", weights, arch=arch))
    for name, values in weights.items():
        assert torch.equal(loaded[name], torch.from_numpy(values)), name


def name_of(name: str) -> str:
    names = find_gguf("qwen3").names.gguf
    assert names is not None
    return names.of(name)[0]


def test_names_nobody_knows_stay_for_the_error_message() -> None:
    assert name_of("blk.3.attn_k_norm.weight") == "model.layers.3.self_attn.k_norm.weight"
    assert name_of("output.weight") == "lm_head.weight"
    assert name_of("blk.0.ffn_gate_exps.weight") == "blk.0.ffn_gate_exps.weight"
    assert name_of("attn_q.weight") == "attn_q.weight"
    assert name_of("blk.0.token_embd.weight") == "blk.0.token_embd.weight"


def test_rope_table_is_no_weight(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    assert "rope_freqs.weight" not in read(file)


def test_type_that_cannot_be_dequantised_is_named(tmp_path: Path) -> None:
    raw = np.zeros((2, 32), np.uint8)
    with pytest.raises(WeightError, match=r"m\.gguf: tensor 'token_embd\.weight' has type I8, which cannot"):
        read(write_raw(tmp_path / "m.gguf", raw, Type.I8))


def test_header_agrees_with_the_package_reader(tmp_path: Path) -> None:
    extra = {"x.floats": [0.5, 1.5], "x.ints": [1, -2], "x.strings": ["a", "推理", ""], "general.alignment": 64}
    file = write_gguf(tmp_path / "m.gguf", types={"model.embed_tokens.weight": Type.Q8_0}, extra=extra)
    header, reference = read_gguf_header(file), gguf.GGUFReader(file)
    fields = {key: f.contents() for key, f in reference.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata == fields
    assert header.architecture == "llama"
    assert list(header.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        entry = header.tensors[tensor.name]
        assert (entry.dtype, entry.offset, entry.nbytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))


class Header:
    """Writes GGUF headers byte by byte, wrong ones included."""

    def __init__(self, *, magic: bytes = b"GGUF", version: int = 3, tensors: int = 0, fields: int = 0) -> None:
        self.bytes = magic + struct.pack("<IQQ", version, tensors, fields)

    def string(self, text: str | bytes) -> Header:
        raw = text.encode() if isinstance(text, str) else text
        self.bytes += struct.pack("<Q", len(raw)) + raw
        return self

    def pack(self, fmt: str, *values: int) -> Header:
        self.bytes += struct.pack(f"<{fmt}", *values)
        return self

    def tensor(self, name: str, dims: list[int], kind: int, offset: int) -> Header:
        return self.string(name).pack("I", len(dims)).pack(f"{len(dims)}QIQ", *dims, kind, offset)


UINT8, UINT32, STRING, ARRAY = 0, 4, 8, 9


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (Header(magic=b"GGML"), "not a GGUF file"),
        (Header(version=1), "GGUF version 1 is not supported"),
        (Header(version=3 << 24), "is not supported, only .* little-endian"),
        (Header(tensors=2**60), "1152921504606846976 tensors, at most"),
        (Header(fields=2**60), "1152921504606846976 metadata fields, at most"),
        (Header(fields=1).pack("Q", 2**63), "bytes in a string, at most"),
        (Header(fields=1).string("k").pack("I", 99), "metadata of type 99"),
        (Header(fields=1).string("k").pack("IIQ", ARRAY, UINT8, 2**60), "elements in an array, at most"),
        (Header(fields=1).string("k").pack("IIQ", ARRAY, UINT8, 2**20), "truncated or bad header"),
        (Header(fields=1).string("k").pack("IIQ", ARRAY, STRING, 2**20), "truncated or bad header"),
        (Header(fields=1).string("k").pack("IIQ", ARRAY, ARRAY, 1), "metadata of type 9"),
        (Header(fields=1).string("k").pack("I", STRING).string(b"\xff"), "is not UTF-8"),
        (Header(fields=2).string("k").pack("IB", UINT8, 1).string("k").pack("IB", UINT8, 1), "'k' stands twice"),
        (Header(fields=1).string("general.alignment").pack("II", UINT32, 0), "alignment = 0 is not a power of two"),
        (Header(fields=1).string("general.alignment").pack("II", UINT32, 48), "alignment = 48 is not a power of two"),
        (Header(tensors=1).string("t").pack("I", 9), "tensor 't' has 9 dimensions"),
        (Header(tensors=1).tensor("t", [32], 999, 0), "tensor 't' has the unknown type 999"),
        (Header(tensors=1).tensor("t", [0], 0, 0), r"tensor 't' of shape \(0,\) cannot be F32"),
        (Header(tensors=1).tensor("t", [31], 8, 0), "cannot be Q8_0, whose blocks hold 32"),
        (Header(tensors=1).tensor("t", [4], 0, 5), "offset 5 is not aligned to 32"),
        (Header(tensors=1).tensor("t", [2**62, 2**62], 0, 0), "truncated: tensor 't' ends at byte"),
        (Header(tensors=1).tensor("t", [4], 0, 2**64 - 32), "truncated: tensor 't' ends at byte"),
        (Header(tensors=2).tensor("t", [4], 0, 0).tensor("t", [4], 0, 32), "tensor 't' stands twice"),
        (Header(tensors=2).tensor("t", [16], 0, 0).tensor("u", [4], 0, 32), "tensor 'u' overlaps 't'"),
    ],
)
def test_malformed_headers(tmp_path: Path, header: Header, message: str) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(header.bytes + bytes(256))
    with pytest.raises(WeightError, match=message) as caught:
        read_gguf_header(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_elements_of_all_arrays_together_are_bounded(tmp_path: Path) -> None:
    half = MAX_ELEMENTS // 2 + 1
    header = Header(fields=2)
    for key in ("a", "b"):
        header.string(key).pack("IIQ", ARRAY, UINT8, half).bytes += bytes(half)
    file = tmp_path / "bad.gguf"
    file.write_bytes(header.bytes)
    with pytest.raises(WeightError, match=rf"{half} elements in an array, at most {MAX_ELEMENTS - half} are read"):
        read_gguf_header(file)


@pytest.mark.parametrize("kept", [0, 10, 30, 2000])
def test_truncated_in_the_header(tmp_path: Path, kept: int) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightError, match=r"m\.gguf: truncated"):
        read_gguf_header(file)


def test_truncated_in_the_data_names_the_tensor(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(WeightError, match=r"m\.gguf: truncated: tensor 'blk\.1\.ffn_down\.weight' ends at byte"):
        read_gguf_header(file)


def test_heads_may_be_given_layer_by_layer(tmp_path: Path) -> None:
    weights = random_weights()
    by_layer = {"llama.attention.head_count": [HEADS] * 2, "llama.attention.head_count_kv": [KV_HEADS] * 2}
    read_back = read(write_gguf(tmp_path / "m.gguf", weights, extra=by_layer))
    for part in ("q_proj", "k_proj"):
        name = f"model.layers.1.self_attn.{part}.weight"
        assert np.array_equal(read_back[name], weights[name])


def test_heads_that_do_not_fit_the_rows(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", extra={"llama.attention.head_count": 7})
    with pytest.raises(WeightError, match=r"tensor 'blk\.0\.attn_q\.weight' has 32 rows, which are not 7 heads"):
        read(file)


@pytest.mark.parametrize("kind", [Type.F32, Type.BF16, Type.Q4_1, Type.Q8_0])
def test_an_extent_is_that_of_the_whole(tmp_path: Path, kind: Type) -> None:
    """Columns that begin and end within a block of 32 quantised together included, and rows that are permuted."""
    down, query, norm = (
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
    )
    file = write_gguf(tmp_path / "m.gguf", random_weights(), types={down: kind, query: kind})
    stored = {tensor.name: tensor for tensor in iter_weights([file])}
    head_dim = HIDDEN // HEADS
    for name, extent in [
        (down, Extent(0, 3, 9)),
        (down, Extent(1, 32, 64)),
        (down, Extent(1, 5, 41)),
        (query, Extent(0, head_dim, 3 * head_dim)),
        (query, Extent(1, 1, 2)),
        (norm, Extent(0, 2, 7)),
    ]:
        assert stored[name].read(extent).equal(extent.of(stored[name].read())), (name, extent)
