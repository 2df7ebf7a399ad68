"""Model directories, used where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from app.checkpoints.loader import iter_weights
from app.contract.request import SamplingParams
from app.serving.generator import sampling_defaults
from app.store import ModelNotFound, SilentProgress, Store, StoreError, locate_config, pull, resolve
from tests.store.tiny import CONFIG, random_weights, write_directory, write_json

SILENT = SilentProgress()


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that tries the tiny tokenizer once for all tests."""
    return Store(tmp_path_factory.mktemp("tried") / "home")


def test_directory_is_used_in_place(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "my-model")
    write_json(directory / "generation_config.json", {"temperature": 0.6, "eos_token_id": [1, 2]})
    files = resolve(str(directory), store)
    assert files.name == "my-model"
    assert files.directory == directory
    assert files.weights == (directory / "model.safetensors",)
    assert files.tokenizer_file == directory / "tokenizer.json"
    assert files.config == CONFIG
    assert files.generation_config["temperature"] == 0.6
    assert (files.bos_token, files.eos_token, files.pad_token) == ("<|bos|>", "<|eos|>", None)
    assert files.eos_token_ids == (1, 2)
    assert files.add_bos is False
    assert pull(str(directory), store, SILENT) == files
    assert list(store.entries()) == []


def test_path_may_be_relative(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_directory(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model", store).directory == tmp_path / "org" / "model"
    monkeypatch.chdir(tmp_path / "org" / "model")
    assert resolve(".", store).name == "model"


def test_shards_are_those_of_the_index(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m", shards=2)
    save_file({"other": np.zeros(1, np.float32)}, directory / "unrelated.safetensors")
    names = [file.name for file in resolve(str(directory), store).weights]
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_missing_shard(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m", shards=2)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(StoreError, match=r"m: model-00002-of-00002\.safetensors is missing"):
        resolve(str(directory), store)


def test_tensor_of_the_index_that_no_shard_has(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m", shards=2)
    shard = directory / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, shard)
    with pytest.raises(StoreError, match=rf"model-00001-of-00002\.safetensors: '{gone}' missing"):
        resolve(str(directory), store)


@pytest.mark.parametrize("file", ["../x.safetensors", "/x.safetensors", "pytorch_model.bin"])
def test_index_names_only_safetensors_of_the_directory(tmp_path: Path, store: Store, file: str) -> None:
    directory = write_directory(tmp_path / "m", shards=2)
    write_json(directory / "model.safetensors.index.json", {"weight_map": {"a": file}})
    with pytest.raises(StoreError, match="is no safetensors file of this directory"):
        resolve(str(directory), store)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
        ("{}", "weight_map is not an object of file names"),
        ('{"weight_map": 3}', "weight_map is not an object of file names"),
        ('{"weight_map": {"a": 3}}', "weight_map is not an object of file names"),
        ('{"weight_map": {}}', "weight_map names no files"),
        ('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "'a' stands twice"),
    ],
)
def test_broken_index(tmp_path: Path, tried: Store, index: str, message: str) -> None:
    directory = write_directory(tmp_path / "m", shards=2)
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(StoreError, match=rf"model\.safetensors\.index\.json: .*{message}"):
        resolve(str(directory), tried)


@pytest.mark.parametrize("metadata", [None, {}, {"total_size": 1}, {"total_size": 10**15}, {"total_size": "many"}, [3]])
def test_the_sizes_of_an_index_count_for_nothing(tmp_path: Path, tried: Store, metadata: object) -> None:
    """Some are of parameters, or of another dtype; the files' own headers are checked."""
    directory = write_directory(tmp_path / "m", shards=2)
    index = directory / "model.safetensors.index.json"
    write_json(index, json.loads(index.read_text()) | {"metadata": metadata})
    assert len(resolve(str(directory), tried).weights) == 2


def test_a_whole_file_goes_before_an_index(tmp_path: Path, tried: Store) -> None:
    """As transformers has it."""
    directory = write_directory(tmp_path / "m", shards=2)
    write_directory(directory)
    assert [file.name for file in resolve(str(directory), tried).weights] == ["model.safetensors"]


def test_what_only_shards_hold_is_loaded_too(tmp_path: Path, tried: Store) -> None:
    """An index need not list every tensor."""
    directory = write_directory(tmp_path / "m", shards=2)
    index = directory / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    one_of_each = {file: tensor for tensor, file in said["weight_map"].items()}
    said["weight_map"] = {tensor: file for file, tensor in one_of_each.items()}
    write_json(index, said)
    listed = iter_weights(resolve(str(directory), tried).weights)
    assert {stored.name for stored in listed} == set(random_weights())


def test_truncated_weights_are_found_before_anything_is_started(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(StoreError, match=r"model\.safetensors: truncated: tensor 'model\."):
        resolve(str(directory), store)


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ("pytorch_model.bin", r"only pickled weights \(pytorch_model\.bin\), which are never opened"),
        ("weights.pt", r"only pickled weights \(weights\.pt\)"),
        ("m.gguf", r"to serve the GGUF file name it: .*m\.gguf"),
        ("README.md", "no safetensors weights"),
    ],
)
def test_directory_without_safetensors(tmp_path: Path, store: Store, present: str, message: str) -> None:
    directory = write_directory(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / present)
    for find in (lambda: resolve(str(directory), store), lambda: pull(str(directory), store, SILENT)):
        with pytest.raises(StoreError, match=message):
            find()


def test_several_weight_files_without_an_index(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m", shards=2)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(StoreError, match=r"2 \.safetensors files but no model\.safetensors\.index\.json"):
        resolve(str(directory), store)


def test_random_weights_need_no_file(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    (directory / "model.safetensors").unlink()
    assert resolve(str(directory), store, need_weights=False).weights == ()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json: no such file"),
        ("config.json", "{", r"config\.json: not valid JSON"),
        ("config.json", "[" * 100_000, r"config\.json: not valid JSON"),
        ("config.json", "[]", r"config\.json: not a JSON object"),
        ("config.json", '{"architectures": ["OtherModel"]}', r"config\.json: architectures = 'OtherModel'"),
        ("generation_config.json", '{"eos_token_id": "x"}', r"generation_config\.json: eos_token_id = 'x'"),
        ("generation_config.json", '{"eos_token_id": [true]}', "eos_token_id = True is no token id"),
        ("generation_config.json", '{"eos_token_id": 1000000000000}', "eos_token_id = 1000000000000 is no token id"),
        ("generation_config.json", '{"temperature": "hot"}', r"generation_config\.json: .* - at `\$\.temperature`"),
        ("generation_config.json", '{"top_k": 2.5}', r"generation_config\.json: .* - at `\$\.top_k`"),
        ("generation_config.json", '{"temperature": true}', r"generation_config\.json: .* - at `\$\.temperature`"),
        ("generation_config.json", '{"temperature": 1', r"generation_config\.json: not valid JSON"),
        ("generation_config.json", "[1]", r"generation_config\.json: not a JSON object"),
        ("generation_config.json", "", r"generation_config\.json: not valid JSON"),
        ("generation_config.json", '{"top_p": NaN}', r"generation_config\.json: .* - at `\$\.top_p`"),
        ("tokenizer_config.json", '{"eos_token": "<nowhere>"}', "EOS token '<nowhere>' is not in the vocabulary"),
        ("tokenizer.json", "{", r"tokenizer\.json: "),
    ],
)
def test_broken_json_is_one_line(tmp_path: Path, tried: Store, file: str, content: str | None, message: str) -> None:
    directory = write_directory(tmp_path / "m")
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_text(content)
    with pytest.raises(StoreError, match=message) as caught:
        resolve(str(directory), tried)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["device", "pipe", "huge"])
def test_what_could_be_read_for_ever_is_not_read(tmp_path: Path, store: Store, name: str, kind: str) -> None:
    file = write_directory(tmp_path / "m") / name
    file.unlink(missing_ok=True)
    match kind:
        case "device":
            file.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(file)
        case _:
            file.touch()
            os.truncate(file, 1 << 40)
    with pytest.raises(StoreError, match=rf"{name}: (not a regular file|1099511627776 bytes, at most)"):
        resolve(str(file.parent), store)


def test_a_huge_tokenizer_is_not_read(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    os.truncate(directory / "tokenizer.json", 1 << 40)
    with pytest.raises(StoreError, match=r"tokenizer\.json: 1099511627776 bytes, at most"):
        resolve(str(directory), store)


def test_a_pipe_is_no_weight_file(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")
    with pytest.raises(StoreError, match="no safetensors weights"):
        resolve(str(directory), store)


def test_a_directory_may_be_called_like_a_gguf_file(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m.gguf")
    assert pull(str(directory), store, SILENT).weights == (directory / "model.safetensors",)
    assert resolve(str(directory), store).weights == (directory / "model.safetensors",)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"eos_token": "<|pad|>"}, (1, 2)),
        ({"eos_token": {"content": "<|pad|>", "special": True}}, (1, 2)),
        ({"eos_token": "ab"}, (1, 259)),
        ({"eos_token": "<|x|>", "added_tokens_decoder": {"300": {"content": "<|x|>"}}}, (1, 260)),
        ({"eos_token": None}, (1,)),
    ],
)
def test_eos_is_the_union_of_all_files(
    tmp_path: Path, store: Store, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "tokenizer_config.json", config)
    assert resolve(str(directory), store).eos_token_ids == expected


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": 2}, (1, 2)),
        ({"eos_token_id": [2, 3]}, (1, 2, 3)),
        ({"eos_token_id": []}, (1,)),
        ({"eos_token_id": None}, (1,)),
        ({}, (1,)),
        (None, (1,)),
    ],
)
def test_eos_of_every_kind(tmp_path: Path, tried: Store, generation: Any, expected: tuple[int, ...]) -> None:
    directory = write_directory(tmp_path / "m")
    if generation is not None:
        write_json(directory / "generation_config.json", generation)
    assert resolve(str(directory), tried).eos_token_ids == expected


def test_eos_of_the_text_part(tmp_path: Path, tried: Store) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "config.json", CONFIG | {"text_config": {"eos_token_id": [3, 2]}})
    assert resolve(str(directory), tried).eos_token_ids == (1, 2, 3)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (
            {"temperature": 1, "top_p": 1, "top_k": 20, "min_p": 0},
            {"temperature": 1.0, "top_p": 1.0, "top_k": 20, "min_p": 0.0},
        ),
        ({"top_k": 50.0, "repetition_penalty": 1}, {"top_k": 50, "repetition_penalty": 1.0}),
        ({"temperature": None, "top_k": None, "top_p": None}, {}),
        # Other servers take the temperature, too: clients send theirs, or want the makers'.
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": False}, {}),
        ({"temperature": 0.0, "top_k": -1}, {"temperature": 0.0, "top_k": -1}),
        ({"_from_model_config": True, "transformers_version": "5.0", "num_beams": 4, "anything": {"a": []}}, {}),
    ],
)
def test_sampling_defaults_of_every_kind(
    tmp_path: Path, tried: Store, generation: dict[str, Any], expected: dict[str, Any]
) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "generation_config.json", generation)
    defaults = sampling_defaults(resolve(str(directory), tried).generation_config)
    assert defaults == expected
    assert {name: type(value) for name, value in defaults.items()} == {
        name: type(value) for name, value in expected.items()
    }
    assert SamplingParams(**defaults)


def test_unigram_vocabulary_is_searched_by_piece(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(
        directory / "tokenizer.json",
        {"added_tokens": [], "model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["x", -1.0], ["</s>", -2.5]]}},
    )
    write_json(directory / "tokenizer_config.json", {"eos_token": "</s>"})
    assert resolve(str(directory), store).eos_token_ids == (1, 2)


def test_special_tokens_map_counts_where_the_config_lists_no_tokens(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "special_tokens_map.json", {"bos_token": "ab", "pad_token": {"content": "<|pad|>"}})
    files = resolve(str(directory), store)
    assert (files.bos_token, files.pad_token) == ("ab", "<|pad|>")
    write_json(directory / "tokenizer_config.json", {"bos_token": "<|bos|>", "added_tokens_decoder": {}})
    files = resolve(str(directory), store)
    assert (files.bos_token, files.pad_token) == ("<|bos|>", None)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "m: added_tokens_decoder is not an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "m: 'x' is no token id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": "a"}}, "m: 'a' is no token: Expected `object`"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": 1}}}, r"is no token: .* `\$\.content`"),
        ("tokenizer_config.json", {"bos_token": 3}, "m: 3 is no token"),
        ("tokenizer_config.json", {"extra_special_tokens": "a"}, "m: extra_special_tokens is not a list of tokens"),
        ("tokenizer_config.json", {"extra_special_tokens": {"a_token": 1}}, "m: 1 is no token"),
        ("special_tokens_map.json", {"unk_token": {"text": "a"}}, r"m: .* is no token: .*`content`"),
        ("added_tokens.json", {"a": -1}, "m: -1 is no token id"),
        ("added_tokens.json", ["a"], r"added_tokens\.json: not a JSON object"),
    ],
)
def test_what_is_no_token_is_one_line(tmp_path: Path, store: Store, file: str, content: object, message: str) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / file, content)
    with pytest.raises(StoreError, match=message) as caught:
        resolve(str(directory), store)
    assert "\n" not in str(caught.value)


def test_an_eos_that_the_model_has_no_logit_for_is_an_error_if_only_its_name_is_given(
    tmp_path: Path, store: Store
) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "tokenizer_config.json", {"eos_token": "<new>"})
    with pytest.raises(StoreError, match="m: the EOS token '<new>' is not in the vocabulary"):
        resolve(str(directory), store)
    write_json(directory / "config.json", CONFIG | {"vocab_size": 261})
    assert resolve(str(directory), store, need_weights=False).eos_token_ids == (1, 260)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ a }}", "{{ a }}"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], None),
        ([{"name": ["default"], "template": "t"}, "default"], None),
        (None, None),
    ],
)
def test_chat_template_of_the_tokenizer_config(
    tmp_path: Path, store: Store, template: object, expected: str | None
) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "tokenizer_config.json", {"chat_template": template})
    assert resolve(str(directory), store).chat_template == expected


def test_chat_template_file_comes_first(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "tokenizer_config.json", {"chat_template": "config"})
    (directory / "chat_template.jinja").write_text("file")
    files = resolve(str(directory), store)
    assert files.chat_template == "file"


@pytest.mark.parametrize(
    "templates",
    [
        [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}],
        {"default": "d", "tool_use": "t", "rag": "r"},
    ],
)
def test_templates_with_names(tmp_path: Path, tried: Store, templates: object) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "tokenizer_config.json", {"chat_template": templates})
    files = resolve(str(directory), tried)
    assert (files.chat_template, files.chat_templates) == ("d", {"tool_use": "t", "rag": "r"})
    (directory / "additional_chat_templates").mkdir()
    for name in ("rag", "plain"):
        (directory / "additional_chat_templates" / f"{name}.jinja").write_text(f"file {name}")
    files = resolve(str(directory), tried)
    assert files.chat_templates == {"tool_use": "t", "rag": "file rag", "plain": "file plain"}
    (directory / "additional_chat_templates" / "rag.jinja").write_bytes(b"\xff")
    with pytest.raises(StoreError, match=r"rag\.jinja: 'utf-8' codec"):
        resolve(str(directory), tried)


def test_more_templates_than_are_read(tmp_path: Path, tried: Store) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "tokenizer_config.json", {"chat_template": {f"t{i}": "" for i in range(33)}})
    with pytest.raises(StoreError, match="33 chat templates, at most 32 are read"):
        resolve(str(directory), tried)


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "../nowhere", "nowhere.gguf", "~no-such-user/m"])
def test_path_to_nothing(store: Store, path: str) -> None:
    with pytest.raises(ModelNotFound, match="no such file or directory"):
        resolve(path, store)


def test_file_that_is_no_model(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.touch()
    with pytest.raises((ModelNotFound, StoreError), match=r"pytorch_model\.bin: "):
        resolve(str(file), store)


def test_a_file_of_weights_is_named_by_its_directory(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path)
    with pytest.raises(StoreError, match=f"neither a model directory nor a GGUF file; name its directory, {directory}"):
        resolve(str(directory / "model.safetensors"), store)


def test_what_exists_is_not_said_to_be_missing(tmp_path: Path, store: Store) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(StoreError, match=r"pipe\.gguf: neither a model directory nor a GGUF file"):
        resolve(str(tmp_path / "pipe.gguf"), store)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the model's name is empty: give a built-in name"),
        (" ", "the model's name is empty: give a built-in name"),
        ("https://example.com/m.gguf", "files are not fetched by address; name a hub's repository as org/name"),
        ("hf.co/org", "no repository's address; write hf.co/org/name"),
        ("smolm2-135m", r"no model 'smolm2-135m' \(did you mean smollm2-135m\?\): give"),
    ],
)
def test_names_of_no_model_say_what_to_write(store: Store, name: str, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message):
        resolve(name, store)


def test_not_there_says_which_command_to_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match=rf"fetch it with: tuili pull smollm2-135m --home {store.home}$"):
        resolve("smollm2-135m", store)
    monkeypatch.setenv("TUILI_HOME", str(store.home))
    with pytest.raises(ModelNotFound, match=r"fetch it with: tuili pull org/model@v1$"):
        resolve("org/model@v1", store)
    with pytest.raises(ModelNotFound, match=r"no model 'nonsense': give a built-in name \(smollm2-135m, gemma3-270m\)"):
        resolve("nonsense", store)


def test_resolving_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    directory = write_directory(tmp_path / "m")
    script = f"""
import json, sys
from pathlib import Path
from app.store import Store, resolve
files = resolve({str(directory)!r}, Store(Path({str(tmp_path / "home")!r})))
print(json.dumps([files.name, sorted({{"torch", "transformers", "huggingface_hub"}} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["m", []]


def test_what_another_library_computes_may_be_of_any_architecture(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    write_json(directory / "config.json", CONFIG | {"architectures": ["OtherModel"]})
    with pytest.raises(StoreError, match=r"'OtherModel' is not supported; .*; --via transformers serves"):
        pull(str(directory), store, SILENT)
    files = pull(str(directory), store, SILENT, via="transformers")
    assert files.config["architectures"] == ["OtherModel"]
    assert resolve(str(directory), store, via="transformers") == files
    assert locate_config(str(directory), store, via="transformers") == ("m", directory)


def test_what_another_library_computes_needs_safetensors_all_the_same(tmp_path: Path, store: Store) -> None:
    directory = write_directory(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(StoreError, match="only pickled weights"):
        pull(str(directory), store, SILENT, via="transformers")


@pytest.mark.parametrize("name", ["smollm2-135m", "a.gguf"])
def test_another_library_reads_no_gguf(
    name: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.gguf").write_bytes(b"GGUF")
    for ask in (
        lambda: pull(name, store, SILENT, via="transformers"),
        lambda: resolve(name, store, via="transformers"),
    ):
        with pytest.raises(StoreError, match=f"^{name}: via transformers no GGUF files are read"):
            ask()
