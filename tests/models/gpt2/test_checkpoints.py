"""A GPT-2's files as hubs have them: with and without the prefix, with what older libraries kept beside weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file
from torch import Tensor

from app.checkpoints.header import WeightError
from app.checkpoints.int8 import write_int8_checkpoint
from app.kernels import dispatch
from app.models.architectures import parse_config
from app.runner.errors import RunnerError
from app.runner.loading import read_model_config
from app.store import Store, resolve
from app.text.tokenizer import Tokenizer
from tests.gguf_metadata import byte_level_metadata
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.test_odd_widths import FORMATS, TOLERANCE, native
from tests.models.tiny import CONTEXT, make_reference, reference_logits
from tests.runner.driver import Request, run, runner_of

PREFIX, HEAD, LAYERS = "transformer.", "lm_head.weight", 3


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, 1)


def bare(tensors: dict[str, Tensor]) -> None:
    """Without the prefix and the masks, as a bare ``GPT2Model`` was saved."""
    for name in list(tensors):
        tensors[name.removeprefix(PREFIX)] = tensors.pop(name)


def masked(tensors: dict[str, Tensor]) -> None:
    """With the causal mask of every layer, and what stood for minus infinity."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    for index in range(LAYERS):
        tensors[f"{prefix}h.{index}.attn.bias"] = torch.ones(CONTEXT, CONTEXT, dtype=torch.uint8).tril()[None, None]
        tensors[f"{prefix}h.{index}.attn.masked_bias"] = torch.tensor(-1e4)


def bare_masked(tensors: dict[str, Tensor]) -> None:
    """Published as GPT-2 was."""
    bare(tensors)
    masked(tensors)


def own_head(tensors: dict[str, Tensor]) -> None:
    tensors[HEAD] = tensors[f"{PREFIX}wte.weight"].flip(0).contiguous()


def bare_own_head(tensors: dict[str, Tensor]) -> None:
    own_head(tensors)
    bare(tensors)


@pytest.mark.parametrize("weights", [None, bare, masked, bare_masked, own_head, bare_own_head])
def test_every_layout_is_loaded(tmp_path: Path, weights: object) -> None:
    directory = checkpoint(tmp_path, "gpt2", weights=weights)  # type: ignore[arg-type]
    stored = load_file(directory / "model.safetensors")
    assert (HEAD in stored) == (weights in (own_head, bare_own_head))
    tied = read_model_config(directory, [directory / "model.safetensors"]).tie_word_embeddings
    assert tied == (HEAD not in stored)
    torch.testing.assert_close(served_logprobs(runner_of(directory)), expected_logprobs(directory), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["wpe.weight", "h.1.attn.c_attn.bias", "h.2.mlp.c_fc.weight", "ln_f.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    directory = checkpoint(tmp_path, "gpt2", weights=lambda tensors: tensors.pop(PREFIX + name))
    with pytest.raises(WeightError, match=f"{PREFIX}{name}' missing"):
        runner_of(directory)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    directory = checkpoint(
        tmp_path,
        "gpt2",
        weights=lambda tensors: tensors.update({"transformer.h.0.crossattention.c_attn.bias": torch.ones(2)}),
    )
    with pytest.raises(WeightError, match=r"crossattention\.c_attn\.bias' left over"):
        runner_of(directory)


def test_a_matrix_of_the_other_orientation_is_refused(tmp_path: Path) -> None:
    def turned(tensors: dict[str, Tensor]) -> None:
        name = "transformer.h.0.attn.c_attn.weight"
        tensors[name] = tensors[name].t().contiguous()

    with pytest.raises(WeightError, match=r"c_attn\.weight' has shape \(192, 64\), the model expects \(64, 192\)"):
        runner_of(checkpoint(tmp_path, "gpt2", weights=turned))


@pytest.mark.parametrize("weights", [masked, bare_masked, bare_own_head])
def test_int8_files_are_written_of_every_layout(tmp_path: Path, weights: Callable[[dict[str, Tensor]], None]) -> None:
    directory, out = checkpoint(tmp_path, "gpt2", weights=weights), tmp_path / "int8"
    out.mkdir()
    config = json.loads((directory / "config.json").read_text())
    write_int8_checkpoint(config, [directory / "model.safetensors"], out, progress=lambda _done, _total: None)
    stored = load_file(out / "model.safetensors")
    assert sum(tensor.dtype == torch.int8 for tensor in stored.values()) == 4 * LAYERS
    assert not any(name.endswith((".attn.bias", ".masked_bias")) for name in stored)
    expected = expected_logprobs(directory)
    error = ((served_logprobs(runner_of(out)) - expected).square().mean() / expected.var()).item()
    assert 0 < error < 0.02


@pytest.mark.parametrize("variant", ["gpt2", "gpt2_scales"])
def test_every_format_is_near(tmp_path: Path, variant: str) -> None:
    """Heads of 16 in layers of 64, and heads of 5 in layers of 30, which no native layer takes as int8."""
    directory = checkpoint(tmp_path, variant)
    expected = expected_logprobs(directory)
    for name, options in FORMATS.items():
        served = served_logprobs(runner_of(directory, **options))
        error = ((served - expected).square().mean() / expected.var()).item()
        assert error < TOLERANCE.get(name, 0.02), name


@native
def test_a_second_start_finds_the_packed_weights(tmp_path: Path) -> None:
    directory, packed = checkpoint(tmp_path / "m", "gpt2"), tmp_path / "packed"
    first, second = (
        served_logprobs(runner_of(directory, quantization="int8", packed_cache=str(packed))) for _ in range(2)
    )
    assert len(list(packed.glob("*.packed"))) == 1
    assert torch.equal(first, second)


def test_positions_end_with_their_table(tmp_path: Path) -> None:
    reference = make_reference("gpt2")
    directory = checkpoint(tmp_path, "gpt2")
    assert runner_of(directory).info.max_model_len == CONTEXT
    with pytest.raises(RunnerError, match=f"max_model_len = {CONTEXT + 1} is outside the model's context of {CONTEXT}"):
        runner_of(directory, max_model_len=CONTEXT + 1)
    prompt = [(5 * i) % 128 for i in range(CONTEXT - 4)]
    request = Request(0, prompt, list(range(CONTEXT // 16)))
    run(runner_of(directory), [request], 4)
    logits = reference_logits(reference, [*prompt, *request.outputs])
    assert request.outputs == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


# -- GGUF -------------------------------------------------------------------------------------------------------

TENSOR_NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, LAYERS)
METADATA = byte_level_metadata("gpt-2", ("a b",), add_bos_token=False)
VOCAB_SIZE = len(METADATA["tokenizer.ggml.tokens"])
MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def quantised(tensors: dict[str, Tensor]) -> None:
    """Every matrix as Q8_0 gives it back, in the orientation of a GGUF file."""
    for name, tensor in tensors.items():
        if name.endswith(MATRICES):
            raw = gguf.quants.quantize(tensor.t().contiguous().numpy(), Type.Q8_0)
            tensors[name] = torch.from_numpy(gguf.quants.dequantize(raw, Type.Q8_0)).t().contiguous()


def write_gguf(path: Path, directory: Path, *, kind: Type, head: bool) -> Path:
    """A checkpoint as llama.cpp's converter writes it: matrices as [outputs, inputs], by that library's names.

    Args:
        kind: of the matrices.
        head: writes the embedding once more as the head, as older converters did.
    """
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2])
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    for key, value in METADATA.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, tensor in load_file(directory / "model.safetensors").items():
        turned = tensor.t().contiguous().numpy() if name.endswith(MATRICES) else tensor.numpy()
        theirs = TENSOR_NAMES.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        if name.endswith(MATRICES):
            writer.add_tensor(theirs, gguf.quants.quantize(turned, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, turned)
        if head and theirs == "token_embd.weight":
            writer.add_tensor("output.weight", turned)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("kind", "head"), [(Type.F32, True), (Type.Q8_0, False)])
def test_a_gguf_file_is_the_checkpoint(tmp_path: Path, kind: Type, head: bool) -> None:
    weights = quantised if kind is Type.Q8_0 else None
    directory = checkpoint(tmp_path / "m", "gpt2", weights=weights, vocab_size=VOCAB_SIZE)
    file = write_gguf(tmp_path / "m.gguf", directory, kind=kind, head=head)
    files = resolve(str(file), Store(tmp_path / "home"))
    assert parse_config(files.config) == read_model_config(directory)
    served = served_logprobs(runner_of(files.directory, weights=tuple(map(str, files.weights))))
    torch.testing.assert_close(served, expected_logprobs(directory), rtol=0, atol=1e-4)


def test_its_tokenizer_adds_nothing(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "m", "gpt2", vocab_size=VOCAB_SIZE)
    file = write_gguf(tmp_path / "m.gguf", directory, kind=Type.F32, head=False)
    files = resolve(str(file), Store(tmp_path / "home"))
    tokens = METADATA["tokenizer.ggml.tokens"]
    assert Tokenizer.load(files.tokenizer_file).encode("abba") == [tokens.index(token) for token in ("ab", "b", "a")]
    assert files.eos_token_ids == (METADATA["tokenizer.ggml.eos_token_id"],)
