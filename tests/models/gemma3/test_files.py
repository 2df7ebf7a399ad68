"""A Gemma 3 out of the files of others: llama.cpp's, and those of a model that sees images too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import MODEL_ARCH, MODEL_TENSOR, TokenType
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForImageTextToText, Gemma3Config, PreTrainedModel

from app.checkpoints.gguf_header import read_gguf_header
from app.checkpoints.header import WeightError
from app.checkpoints.loader import load_weights
from app.models.architectures import find, parse_config
from app.models.config import ModelConfig
from app.models.gemma3.names import NAMES
from app.quant.placement import Placement
from app.runner.loading import read_model_config
from app.store import Store, resolve
from app.store.errors import StoreError
from app.store.files import read_model
from app.store.gguf_config import config_json
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS, close
from tests.models.tiny import CONTEXT, CPU, PagedExecution, load, make_reference, reference_logits
from tests.store.tiny import write_json, write_tokenizer

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "  "]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["ab", "▁ab", "▁", "a", "b", "你"]
VOCAB = [*SPECIALS, *BYTES, *PIECES]
KINDS = [
    *[TokenType.CONTROL] * 6,
    *[TokenType.USER_DEFINED] * 3,
    *[TokenType.BYTE] * 256,
    *[TokenType.NORMAL] * len(PIECES),
]


def shape(name: str, **changes: Any) -> PreTrainedModel:
    return make_reference(name, vocab_size=len(VOCAB), **changes)


def write_gguf(path: Path, reference: PreTrainedModel, **metadata: Any) -> Path:
    """As llama.cpp's converter writes it: its names, and norms as they are multiplied with.

    Args:
        metadata: beside the usual, ``__`` for a dot.
    """
    config = reference.config
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    full = config.rope_parameters["full_attention"]
    writer.add_rope_freq_base(full["rope_theta"])
    if full["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(VOCAB)
    writer.add_token_scores([-1000.0] * (len(SPECIALS) + 256) + [float(-i) for i in range(len(PIECES))])
    writer.add_token_types(KINDS)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for key, value in metadata.items():
        writer.add_key_value(f"gemma3.{key.replace('__', '.')}", value, gguf.GGUFValueType.get_type(value))
    names = gguf.get_tensor_name_map(MODEL_ARCH.GEMMA3, len(reference.model.layers))
    for name, values in reference.state_dict().items():
        if name != "lm_head.weight":
            stored = values + 1 if name.endswith("norm.weight") else values
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), stored.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(config: ModelConfig, file: Path) -> Tensor:
    model = find(config.architecture).build(config, max_positions=CONTEXT, placement=Placement(torch.float32, CPU))
    load_weights(
        model.destinations(), [file], ignore=model.ignores, twins=model.twins(), progress=lambda _done, _total: None
    )
    return PagedExecution(model, config).sequence(TOKENS, [60, 40], SHUFFLED_BLOCKS)


def test_every_name_of_llama_cpp_is_known() -> None:
    assert NAMES.gguf is not None
    for tensor in gguf.MODEL_TENSORS[MODEL_ARCH.GEMMA3]:
        if tensor is not MODEL_TENSOR.ROPE_FREQS:
            name = f"{gguf.TENSOR_NAMES[tensor].format(bid=0)}.weight"
            assert NAMES.gguf.of(name)[0] != name


@pytest.mark.parametrize("linear", [False, True])
def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path, store: Store, linear: bool) -> None:
    """Of its metadata alone: period and base of the layers that slide are what llama.cpp has in its code."""
    full = {"rope_type": "linear", "factor": 8.0} if linear else {"rope_type": "default"}
    rope = {"full_attention": {**full, "rope_theta": 5e5}, "sliding_attention": {"rope_type": "default"}}
    changes = {"sliding_window_pattern": 6, "num_hidden_layers": 7, "query_pre_attn_scalar": 16}
    reference = shape("gemma3", rope_parameters=rope, **changes)
    file = write_gguf(tmp_path / "m.gguf", reference)
    files = resolve(str(file), store)
    config = parse_config(files.config)
    assert config == parse_config(reference.config.to_dict() | {"architectures": ["Gemma3ForCausalLM"]})
    close(logits_of(config, file), reference_logits(reference, TOKENS))


def test_a_file_whose_layers_all_see_everything(tmp_path: Path) -> None:
    reference = shape("gemma3")
    reference.config.sliding_window = 0
    config = parse_config(config_json(read_gguf_header(write_gguf(tmp_path / "m.gguf", reference))))
    assert [attention.window for attention in config.attentions] == [None] * 4


def test_more_layers_than_there_can_be_are_refused(tmp_path: Path, store: Store) -> None:
    reference = shape("gemma3")
    reference.config.num_hidden_layers = (1 << 32) - 1
    with pytest.raises(StoreError, match="num_hidden_layers"):
        resolve(str(write_gguf(tmp_path / "m.gguf", reference)), store)


def test_what_a_file_says_goes_before_what_is_usual(tmp_path: Path) -> None:
    changes = {"attention__sliding_window_pattern": 2, "rope__freq_base_swa": 77.0}
    file = write_gguf(tmp_path / "m.gguf", shape("gemma3"), **changes)
    config = parse_config(config_json(read_gguf_header(file)))
    assert [attention.window for attention in config.attentions] == [24, None, 24, None]
    ropes = [attention.rope.theta for attention in config.attentions if attention.rope is not None]
    assert ropes == [77.0, 1e6, 77.0, 1e6]


def test_attention_of_the_27b_is_scaled_by_its_share_of_the_stream(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", shape("gemma3", num_hidden_layers=62, hidden_size=32, intermediate_size=32))
    assert {attention.scale for attention in parse_config(config_json(read_gguf_header(file))).attentions} == {8**-0.5}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attention__sliding_window_pattern": [True, False]}, "layer_types has 2 entries"),
        ({"attention__sliding_window_pattern": -1}, "sliding_window_pattern"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, store: Store, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        resolve(str(write_gguf(tmp_path / "m.gguf", shape("gemma3"), **metadata)), store)


def test_the_tokenizer_of_a_gguf_file(tmp_path: Path, store: Store) -> None:
    files = resolve(str(write_gguf(tmp_path / "m.gguf", shape("gemma3"))), store)
    tokenizer = Tokenizer.from_file(str(files.tokenizer_file))

    def tokens(text: str) -> list[str]:
        found: list[str] = tokenizer.encode(text).tokens
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == f"<bos>{text}"
        return found[1:]

    assert tokens("ab ab") == ["ab", "▁ab"]
    assert tokens("  ab\n\nb") == ["  ", "ab", "\n\n", "b"]
    assert tokens("你é") == ["你", "<0xC3>", "<0xA9>"]
    assert tokens("<end_of_turn>\n") == ["<end_of_turn>", "\n"]
    assert files.bos_token == "<bos>"
    assert files.eos_token_ids == (1, 5), "a turn's end is an answer's, whether or not the file says so"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A model that sees images, and its directory."""
    text = make_reference("gemma3").config.to_dict()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=127)
    torch.manual_seed(2)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name:
                parameter.normal_(std=0.2)
    directory = tmp_path_factory.mktemp("seeing")
    model.save_pretrained(directory)
    return model, directory


def test_the_text_part_of_a_model_that_sees_images(seeing: tuple[PreTrainedModel, Path]) -> None:
    reference, directory = seeing
    model, config = load(directory)
    assert config.architecture == "Gemma3ForConditionalGeneration"
    tokens = [token % 127 for token in TOKENS]
    with torch.no_grad():
        expected = reference(torch.tensor([tokens]), use_cache=False).logits[0]
    close(PagedExecution(model, config).sequence(tokens, [60, 40], SHUFFLED_BLOCKS), expected)


def test_that_images_are_not_served_is_said(
    seeing: tuple[PreTrainedModel, Path], caplog: pytest.LogCaptureFixture
) -> None:
    read_model_config(seeing[1])
    assert "images are not" in caplog.text


def test_an_eos_token_that_only_the_tokenizers_files_name(seeing: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    """A token's id is held against the vocabulary of the text part."""
    for file in seeing[1].iterdir():
        shutil.copy(file, tmp_path)
    write_tokenizer(tmp_path / "tokenizer.json")
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<beyond>"})
    with pytest.raises(StoreError, match="'<beyond>' is not in the vocabulary"):
        read_model("m", tmp_path, [])


def test_what_is_neither_text_part_nor_vision_is_left_over(seeing: tuple[PreTrainedModel, Path]) -> None:
    model, _ = load(seeing[1])
    assert model.ignores("vision_tower.embeddings.patch_embedding.weight")
    assert not model.ignores("audio_tower.weight")
    with pytest.raises(WeightError, match="missing"):
        load_weights(model.destinations(), [], ignore=model.ignores, progress=lambda _done, _total: None)
