"""Model files as hubs' caches keep them: a link with the name, to a file that is called after its hash."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.checkpoints.loader import iter_weights
from app.store import ModelNotFound, SilentProgress, Store, StoreError, locate_config, pull, resolve
from tests.store.tiny import random_weights, write_directory, write_gguf

HASH = "3f9c2a77"


def as_blobs(directory: Path, blobs: Path) -> Path:
    """Moves every file of a directory away and leaves links."""
    blobs.mkdir()
    for index, file in enumerate(sorted(directory.iterdir())):
        blob = blobs / f"{HASH}{index:02}"
        file.rename(blob)
        file.symlink_to(Path("..") / blobs.name / blob.name)
    return directory


def tensor_names(files: tuple[Path, ...]) -> set[str]:
    return {stored.name for stored in iter_weights(files) if stored.read().numel()}


@pytest.mark.parametrize(
    ("link", "name"), [("snapshots/rev/model.gguf", "model"), ("MODEL.GGUF", "MODEL"), ("v1.5-q4", "v1.5-q4")]
)
def test_gguf_behind_a_link(tmp_path: Path, store: Store, link: str, name: str) -> None:
    (tmp_path / "blobs").mkdir()
    blob = write_gguf(tmp_path / "blobs" / HASH)
    path = tmp_path / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(blob)
    files = pull(str(path), store, SilentProgress())
    assert files.name == name
    assert files == resolve(str(path), store)
    assert tensor_names(files.weights) == set(random_weights())
    assert locate_config(str(path), store) == (name, files.directory)


@pytest.mark.parametrize("name", [HASH, "m.GGUF", "m.gguf.part", "m.safetensors"])
def test_gguf_is_known_by_its_first_bytes(tmp_path: Path, store: Store, name: str) -> None:
    files = resolve(str(write_gguf(tmp_path / name)), store)
    assert files.name == name.removesuffix(".GGUF")
    assert tensor_names(files.weights) == set(random_weights())


def test_model_named_by_a_relative_path(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").symlink_to(write_gguf(tmp_path / HASH))
    directory = write_directory(tmp_path / "sub")
    monkeypatch.chdir(directory)
    assert resolve(f"../{HASH}", store).weights == (tmp_path / HASH,)
    assert resolve("../m.gguf", store).name == "m"
    assert {resolve(path, store).directory for path in (".", "../sub", "../sub/../sub")} == {directory}


def test_links_of_two_names_keep_what_was_derived_for_each(tmp_path: Path, store: Store) -> None:
    blob = write_gguf(tmp_path / HASH)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).symlink_to(blob)
    first = resolve(str(tmp_path / "a.gguf"), store)
    resolve(str(tmp_path / "b.gguf"), store)
    assert first.tokenizer_file.exists()


def test_a_link_to_another_file_is_another_model(tmp_path: Path, store: Store) -> None:
    link = tmp_path / "m.gguf"
    for template in ("a", "b"):
        blob = write_gguf(tmp_path / f"{HASH}{template}", extra={"tokenizer.chat_template": template})
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        assert resolve(str(link), store).chat_template == template
    assert len(list(store.entries())) == 1


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors_behind_links(tmp_path: Path, store: Store, shards: int) -> None:
    directory = as_blobs(write_directory(tmp_path / "rev", shards=shards), tmp_path / "blobs")
    files = pull(str(directory), store, SilentProgress())
    assert len(files.weights) == shards
    assert tensor_names(files.weights) == set(random_weights())


def test_a_directory_that_is_a_link_is_called_like_the_link(tmp_path: Path, store: Store) -> None:
    write_directory(tmp_path / HASH)
    (tmp_path / "llama").symlink_to(HASH)
    files = resolve(str(tmp_path / "llama"), store)
    assert files.name == "llama"
    assert locate_config(str(tmp_path / "llama"), store)[0] == "llama"
    assert tensor_names(files.weights) == set(random_weights())


@pytest.mark.parametrize("name", ["m.gguf", "m", "./m"])
def test_link_to_nothing(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / Path(name).name).symlink_to("blobs/gone")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=rf"{Path(name).name}: a link to blobs/gone, which is not there"):
        resolve(name, store)


def test_weights_behind_a_link_to_nothing(tmp_path: Path, store: Store) -> None:
    directory = as_blobs(write_directory(tmp_path / "rev"), tmp_path / "blobs")
    (directory / "model.safetensors").resolve().unlink()
    with pytest.raises(StoreError, match=r"rev: model\.safetensors is a link to a file that is not there"):
        resolve(str(directory), store)


def test_a_directory_with_gguf_files_alone_says_which_to_name(tmp_path: Path, store: Store) -> None:
    directory = tmp_path / "rev"
    directory.mkdir()
    (directory / "model.GGUF").symlink_to(write_gguf(tmp_path / HASH))
    with pytest.raises(StoreError, match=r"to serve the GGUF file name it: /.*/rev/model\.GGUF"):
        resolve(str(directory), store)
