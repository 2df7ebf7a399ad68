"""A GGUF model in several files: read by any of them, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from app.checkpoints.gguf_header import read_gguf_header
from app.checkpoints.gguf_split import SplitName, parts_of, split_name
from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from tests.store.tiny import parts, random_weights, write_gguf


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    """The three files of a model, and all of it in one beside them."""
    write_gguf(tmp_path / "whole.gguf")
    write_gguf(tmp_path / "tiny.gguf", split=-(-len(random_weights()) // 3))
    found = parts(tmp_path / "tiny.gguf")
    assert [part.name for part in found] == [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    return found


def test_any_file_gives_the_header_of_all(split: list[Path]) -> None:
    whole = read_gguf_header(split[0].with_name("whole.gguf"))
    for part in split:
        header = read_gguf_header(part)
        assert header.path == split[0]
        assert header.metadata.items() >= whole.metadata.items()
        assert list(header.tensors) == list(whole.tensors)
        assert {header.file_of(entry) for entry in header.tensors.values()} == set(split)


def test_tensors_are_those_of_one_file(split: list[Path]) -> None:
    whole = {stored.name: stored for stored in iter_weights([split[0].with_name("whole.gguf")])}
    listed = {stored.name: stored for stored in iter_weights(split)}
    assert listed.keys() == whole.keys()
    assert {stored.file for stored in listed.values()} == set(split)
    assert all(torch.equal(stored.read(), whole[name].read()) for name, stored in listed.items())


def test_an_empty_first_file(tmp_path: Path) -> None:
    """As llama.cpp's converter writes it to have the metadata by itself."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1, small_first_shard=True)
    writer.add_block_count(1)
    for name in ("output_norm.weight", "token_embd.weight"):
        writer.add_tensor(name, torch.ones(4, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = parts(tmp_path / "m.gguf")
    assert len(found) == 3
    assert len(read_gguf_header(found[1]).tensors) == 2
    assert {stored.file for stored in iter_weights(found)} == set(found[1:])


def test_a_missing_file_is_named(split: list[Path]) -> None:
    split[1].unlink()
    for part in (split[0], split[2]):
        with pytest.raises(WeightError, match=r"tiny-00002-of-00003\.gguf: missing, part 2 of 3 of a model"):
            read_gguf_header(part)


def test_a_file_by_another_name_is_told_its_own(split: list[Path]) -> None:
    for name in ("tiny.gguf", "tiny-00002-of-00003.gguf", "tiny-00001-of-00002.gguf"):
        other = split[0].with_name("renamed") / name
        other.parent.mkdir(exist_ok=True)
        shutil.copy(split[0], other)
        with pytest.raises(
            WeightError, match=r"part 1 of 3 of a model, whose name has to end in -00001-of-00003\.gguf"
        ):
            read_gguf_header(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split.count": 4}, "no part of the model of .*tiny-00001-of-00003.gguf: split.count = 4, not 3"),
        ({"split.no": 2}, "no part of the model of .*: split.no = 2, not 1"),
        ({"split.tensors.count": 9}, "no part of the model of .*: split.tensors.count = 9, not"),
        ({"split.no": "1"}, "split.no = '1' is no number"),
        ({"general.architecture": "qwen2"}, "no part of the model of .*: general.architecture is another"),
        ({"general.name": "Other"}, "no part of the model of .*: general.name is another"),
        ({"tensor": "token_embd.weight"}, "tensor 'token_embd.weight' is also in .*tiny-00001-of-00003.gguf"),
        ({"tensor": "other.weight"}, "split.tensors.count = .*, but its 3 parts hold .* tensors"),
    ],
)
def test_a_file_of_another_model_is_refused(split: list[Path], changes: dict[str, Any], message: str) -> None:
    total = read_gguf_header(split[0]).metadata["split.tensors.count"]
    said = {"split.no": 1, "split.count": 3, "split.tensors.count": total, **changes}
    writer = gguf.GGUFWriter(split[1], "")
    writer.kv_data[0].clear()
    tensor = said.pop("tensor", "other.weight")
    for key, value in said.items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
    writer.add_tensor(tensor, torch.ones(4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightError, match=message) as caught:
        read_gguf_header(split[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a-00001-of-00001.gguf", ("a", 1, 1)),
        ("a-b-00002-of-00003.GGUF", ("a-b", 2, 3)),
        ("a-00004-of-00003.gguf", None),
        ("a-00000-of-00003.gguf", None),
        ("a-00001-of-99999.gguf", None),
        ("a-1-of-3.gguf", None),
        ("-00001-of-00003.gguf", None),
        ("a-00001-of-00003", None),
        ("a.gguf", None),
    ],
)
def test_names(tmp_path: Path, name: str, said: tuple[str, int, int] | None) -> None:
    assert split_name(tmp_path / name) == (said and SplitName(*said))
    if said is None:
        assert parts_of(tmp_path / name) == (tmp_path / name,)
