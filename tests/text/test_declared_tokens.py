"""What transformers' tokenizer makes of the files of a model directory is what ours makes of them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import processors
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from app.store import ModelFiles, StoreError
from app.store.files import read_model
from app.text.tokenizer import Tokenizer, TokenizerError
from tests.byte_tokenizer import build_byte_tokenizer, byte_alphabet
from tests.store.tiny import CONFIG as TINY

Files = Mapping[str, Any]
"""JSON by file name."""

CLASSES = ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast", "GemmaTokenizer"]
CONFIG = TINY | {"vocab_size": 400}
CONTENTS = [
    "<|a|>",
    "<|b|>",
    "<c>",
    "<D>",
    "word",
    "<｜é｜>",
    "<|im_start|>",
    "</s>",
    "<|endoftext|>",
    "<unk>",
    "<pad>",
]
TEXTS = [
    "plain text, of no token",
    *(template.format(content) for content in CONTENTS for template in ("{0}", "x {0} y", "x  {0}  y", "x{0}{0}y")),
    " ".join(CONTENTS),
    "".join(CONTENTS),
    "words and a word",
]


def config_of(model_type: str) -> dict[str, Any]:
    """A config.json of a family."""
    return CONFIG | {"model_type": model_type, "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]}


def definition(kind: str, own: list[dict[str, Any]]) -> dict[str, Any]:
    """A ``tokenizer.json`` with the pipeline that a class insists on, and these added tokens."""
    if kind in ("LlamaTokenizerFast", "GemmaTokenizer"):
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdexy", "word"]
    else:
        pieces = [*byte_alphabet(), "word"]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    if kind == "PreTrainedTokenizerFast":
        built = build_byte_tokenizer()
    else:
        built = getattr(transformers, kind.removesuffix("Fast"))(vocab=vocab, merges=[]).backend_tokenizer
    tree: dict[str, Any] = json.loads(built.to_str())
    tree["model"]["vocab"] = vocab
    return tree | {"added_tokens": own}


def write(directory: Path, files: Files) -> Path:
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def load(directory: Path) -> tuple[Tokenizer, ModelFiles]:
    files = read_model("m", directory, [])
    names = {"bos_token": files.bos_token, "eos_token": files.eos_token, "pad_token": files.pad_token}
    return Tokenizer.load(files.tokenizer_file, add_bos=files.add_bos, **names), files


def assert_agrees(directory: Path) -> Tokenizer:
    """Holds ours against transformers' tokenizer of a directory, and returns it."""
    theirs = AutoTokenizer.from_pretrained(directory)
    ours, files = load(directory)
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text, parse_special=True) == ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), (text, skip)
    assert files.special_tokens == theirs.special_tokens_map
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    if theirs.eos_token_id is not None:
        assert theirs.eos_token_id in files.eos_token_ids
    return ours


def token(content: str, **flags: bool) -> dict[str, Any]:
    usual = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": content} | usual | flags


def generic(config: Files, own: list[dict[str, Any]] | None = None, **others: Any) -> Files:
    own = [token("</s>") | {"id": 257}, token("<|im_start|>") | {"id": 258}] if own is None else own
    return {
        "config.json": config_of("llama"),
        "tokenizer.json": definition("PreTrainedTokenizerFast", own),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"} | dict(config),
        **{f"{name}.json": value for name, value in others.items()},
    }


A, B = token("<|a|>"), token("<|b|>")
DECLARED: dict[str, Files] = {
    "decoder": generic({"added_tokens_decoder": {"259": A}}),
    "out of order": generic({"added_tokens_decoder": {"260": A, "259": B}}),
    "hole": generic({"added_tokens_decoder": {"290": A, "280": B}}),
    "id of another token": generic({"added_tokens_decoder": {"97": A, "257": B}}),
    "id of itself": generic({"added_tokens_decoder": {"257": token("</s>", rstrip=True)}}),
    "no longer special": generic(
        {"added_tokens_decoder": {"257": token("</s>"), "258": token("<|im_start|>", special=False)}}
    ),
    "special only here": generic({"added_tokens_decoder": {"257": A}}, [token("<|a|>", special=False) | {"id": 257}]),
    "a word": generic(
        {"added_tokens_decoder": {"256": token("word", special=False, normalized=True, single_word=True)}}
    ),
    "stripping": generic(
        {"added_tokens_decoder": {"259": token("<|a|>", lstrip=True), "260": token("<|b|>", rstrip=True)}}
    ),
    "text beyond ASCII": generic({"added_tokens_decoder": {"259": token("<｜é｜>")}}),
    "additional": generic({"additional_special_tokens": ["<|a|>", "<|b|>"]}),
    "extra list": generic({"extra_special_tokens": ["<|b|>", "<|a|>"], "additional_special_tokens": ["<c>"]}),
    "extra names": generic({"extra_special_tokens": {"image_token": "<|a|>", "boi_token": "<|b|>"}}),
    "own name": generic({"video_token": "<|a|>"}),
    "names": generic({"bos_token": "<|a|>", "unk_token": "<unk>", "pad_token": "word", "mask_token": "<|b|>"}),
    "name with flags": generic({"bos_token": {"__type": "AddedToken", **token("<|a|>", lstrip=True)}}),
    "map": generic(
        {"bos_token": "<c>"}, special_tokens_map={"bos_token": token("<|a|>", rstrip=True), "eos_token": "<D>"}
    ),
    "map and decoder": generic({"added_tokens_decoder": {"259": A}}, special_tokens_map={"bos_token": "<|b|>"}),
    "map with extra": generic({}, special_tokens_map={"additional_special_tokens": ["<|a|>"], "image_token": "<|b|>"}),
    "added": generic({}, added_tokens={"<|b|>": 260, "<|a|>": 259}),
    "added, and named": generic(
        {"unk_token": "<|a|>", "additional_special_tokens": ["<|b|>"]}, added_tokens={"<|b|>": 259, "<|a|>": 260}
    ),
    "added with a known id": generic({}, added_tokens={"<|b|>": 257}),
    "added and decoder": generic({"added_tokens_decoder": {"259": A}}, added_tokens={"<|b|>": 260}),
    "own out of order": generic({}, [A | {"id": 290}, token("</s>") | {"id": 258}, B | {"id": 257}]),
    "add_bos_token": generic({"add_bos_token": True, "add_eos_token": True, "bos_token": "<|a|>"}),
    "no config": {"config.json": CONFIG, "tokenizer.json": definition("PreTrainedTokenizerFast", [A | {"id": 257}])},
}


@pytest.mark.parametrize("files", DECLARED.values(), ids=DECLARED)
def test_tokens_declared_outside_tokenizer_json(tmp_path: Path, files: Files) -> None:
    assert_agrees(write(tmp_path, files))


def random_files(rng: random.Random) -> Files:
    """A directory whose files declare tokens here and there, and do not agree."""
    kind = rng.choice(CLASSES)

    def draw() -> list[str]:
        return rng.sample(CONTENTS, rng.randint(0, 4))

    def flagged(content: str) -> dict[str, Any]:
        # A control token is matched in the text as it stands even if it says normalized: only without flags is that
        # the same.
        if rng.random() < 0.3:
            return token(content, special=False, normalized=True)
        return token(content, **{flag: rng.random() < 0.2 for flag in ("lstrip", "rstrip", "single_word")})

    def named(content: str) -> Any:
        return rng.choice([content, {"__type": "AddedToken", **flagged(content)}])

    own = [flagged(content) | {"id": 268 + position} for position, content in enumerate(draw())]
    config: dict[str, Any] = {"tokenizer_class": kind, "eos_token": rng.choice(CONTENTS)}
    config |= {name: named(rng.choice(CONTENTS)) for name in ("bos_token", "pad_token") if rng.random() < 0.3}
    if rng.random() < 0.5:
        start = rng.choice([0, 256, 268, 300])
        ids = rng.sample(range(start, start + 6), 6)
        config["added_tokens_decoder"] = {
            str(token_id): flagged(text) for token_id, text in zip(ids, draw(), strict=False)
        }
    if rng.random() < 0.3:
        config["additional_special_tokens"] = draw()
    if rng.random() < 0.3:
        config["extra_special_tokens"] = rng.choice([draw(), {f"{i}_token": text for i, text in enumerate(draw())}])
    if rng.random() < 0.3:
        config["add_bos_token"] = rng.random() < 0.5
    # Byte-level pipelines come under every model type; the others are those of their classes alone.
    models = ["llama", "qwen3", "mistral"] if kind == "GPT2Tokenizer" else ["llama"]
    files: dict[str, Any] = {
        "config.json": config_of(rng.choice(models)),
        "tokenizer.json": definition(kind, own),
        "tokenizer_config.json": config,
    }
    if rng.random() < 0.3:
        files["special_tokens_map.json"] = {"unk_token": flagged(rng.choice(CONTENTS)), "extra_special_tokens": draw()}
    if rng.random() < 0.3:
        files["added_tokens.json"] = {text: rng.randrange(250, 280) for text in draw()}
    return files


@pytest.mark.parametrize("seed", range(100))
def test_files_that_do_not_agree(tmp_path: Path, seed: int) -> None:
    assert_agrees(write(tmp_path, random_files(random.Random(seed))))


def test_a_class_that_reads_the_vocabulary_alone_takes_no_other_list(tmp_path: Path) -> None:
    own = [A | {"id": 257}, B | {"id": 258}]
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"258": token("<|b|>", special=False)}}
    tree = definition("GPT2Tokenizer", own)
    files = {"config.json": config_of("llama"), "tokenizer.json": tree, "tokenizer_config.json": config}
    ours = assert_agrees(write(tmp_path, files))
    assert ours.encode("<|a|><|b|>", parse_special=True) == [*b"<|a|>", 257]
    assert not ours.is_special(257)


@pytest.mark.parametrize(("own_class", "added"), [("PreTrainedTokenizerFast", True), ("Qwen2Tokenizer", False)])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral", "gpt2"])
@pytest.mark.parametrize("named", [True, False])
def test_which_class_counts(tmp_path: Path, own_class: str, added: bool, model_type: str, named: bool) -> None:
    config: dict[str, Any] = {"added_tokens_decoder": {}} | ({"tokenizer_class": own_class} if named else {})
    tree = definition("Qwen2TokenizerFast", [A | {"id": 257}])
    files = {
        "config.json": config_of(model_type),
        "tokenizer.json": tree,
        "tokenizer_config.json": config,
    }
    ours = assert_agrees(write(tmp_path, files))
    if named and model_type == "llama":
        assert (ours.encode("<|a|>", parse_special=True) == [257]) is added


def test_a_byte_level_llama_tokenizer_is_a_generic_one(tmp_path: Path) -> None:
    files = generic({"tokenizer_class": "LlamaTokenizerFast", "added_tokens_decoder": {}, "eos_token": None})
    assert "bos_token" not in load(write(tmp_path, files))[1].special_tokens
    assert_agrees(tmp_path)


def test_code_llama_adds_bos_in_any_case(tmp_path: Path) -> None:
    config = {"tokenizer_class": "CodeLlamaTokenizer", "add_bos_token": False}
    tree = definition("LlamaTokenizerFast", [])
    files = {"config.json": config_of("llama"), "tokenizer.json": tree, "tokenizer_config.json": config}
    ours = load(write(tmp_path, files))[0]
    ids = AutoTokenizer.from_pretrained(tmp_path)("word").input_ids
    assert ours.encode("word")[0] == ids[0] == ours.bos_token_id


def test_the_post_processor_of_tokenizer_json_counts(tmp_path: Path) -> None:
    library = build_byte_tokenizer()
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    write(tmp_path, generic({"add_bos_token": False, "bos_token": "</s>"}))
    library.save(str(tmp_path / "tokenizer.json"))
    assert assert_agrees(tmp_path).encode("a") == [256, 97]


@pytest.mark.parametrize("own", [None, token("<|a|>", special=False, normalized=True)])
def test_declared_control_tokens_are_guarded_like_others(tmp_path: Path, own: dict[str, Any] | None) -> None:
    tokens = [own | {"id": 257}] if own else []
    files = generic({"added_tokens_decoder": {"257": token("<|a|>", normalized=True)}, "eos_token": None}, tokens)
    ours, _ = load(write(tmp_path, files))
    assert ours.encode("<|a|>") == list(b"<|a|>")
    assert ours.encode("<|a|><|a|>", parse_special=True, breaks=[2]) == [*b"<|a|>", 257]
    assert ours.is_special(257)


def test_names_are_read_of_tokens_given_as_objects(tmp_path: Path) -> None:
    """As files of old have them, which transformers 5 does not read any more."""
    names = {"bos_token": A, "additional_special_tokens": [{"content": "<|b|>", "lstrip": True}]}
    ours, files = load(write(tmp_path, generic({}, special_tokens_map=names)))
    assert files.special_tokens == {"bos_token": "<|a|>", "eos_token": "</s>"}
    assert ours.encode("x  <|b|><|a|>", parse_special=True) == [120, 260, 259]


def test_a_broken_file_beside_tokenizer_json_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, generic({"added_tokens_decoder": 3}))
    with pytest.raises(TokenizerError, match="added_tokens_decoder is not an object"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(StoreError, match="added_tokens_decoder is not an object"):
        read_model("m", tmp_path, [])
