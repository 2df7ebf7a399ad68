from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import main
from app.quant.packed_file import PackedHeader
from app.store import SilentProgress, Store
from app.store.home import Manifest


def add(store: Store, name: str, source: str, weights: list[str]) -> None:
    def build(directory: Path) -> Manifest:
        (directory / "config.json").write_bytes(b"x" * 1000)
        for file in weights:
            if not Path(file).is_absolute():
                (directory / file).write_bytes(b"x" * 2_000_000)
        return Manifest(name=name, source=source, weights=weights)

    store.create(name, build, SilentProgress())


def pack(store: Store, name: str, sources: list[Path]) -> Path:
    """Packed weights of 3 MB, made of files; of none, as an older version wrote them."""
    file = store.packed / f"{name}.packed"
    head = PackedHeader("identity", [], [str(source) for source in sources]).to_bytes()
    file.write_bytes(head + b"x" * (3_000_000 - len(head)))
    return file


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two models, one of weights elsewhere, with packed weights of both and of one that nobody knows."""
    store = Store(tmp_path / "home")
    elsewhere = tmp_path / "elsewhere.gguf"
    elsewhere.write_bytes(b"x" * 5_000_000)
    add(store, "beta", "package==1", ["a.safetensors"])
    add(store, "alpha", str(elsewhere), [str(elsewhere)])
    pack(store, "0", [store.home / "models" / "beta" / "a.safetensors"])
    pack(store, "1", [elsewhere])
    pack(store, "2", [])
    return store


def rm(store: Store, *args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["rm", *args, "--home", str(store.home)])
    assert result.exit_code == code, result.output
    return result.output


def listed(home: Path) -> list[list[str]]:
    result = CliRunner().invoke(main, ["list", "--home", str(home)])
    assert result.exit_code == 0, result.output
    return [line.split("  ") for line in result.stdout.splitlines()]


def test_names_sizes_and_sources_of_what_was_pulled(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    elsewhere = tmp_path / "elsewhere.gguf"
    elsewhere.write_bytes(b"x" * 5_000_000)
    add(store, "beta", "package==1", ["a.safetensors", "b.safetensors"])
    add(store, "alpha", str(elsewhere), [str(elsewhere)])
    lines = [[part.strip() for part in line if part] for line in listed(store.home)]
    assert all(line[1].endswith("MB") for line in lines)
    assert [(line[0], line[1].split()[0], line[2]) for line in lines] == [
        ("alpha", "5.0", str(elsewhere)),
        ("beta", "4.0", "package==1"),
    ]
    elsewhere.unlink()
    assert "weights missing" in listed(store.home)[0]


def test_nothing_pulled_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["list", "--home", str(tmp_path / "home")])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "tuili pull" in result.stderr
    assert not (tmp_path / "home").exists()


def test_packed_weights_are_shown(store: Store) -> None:
    result = CliRunner().invoke(main, ["list", "--home", str(store.home)])
    assert ["+ 3.0 MB packed" in line for line in result.stdout.splitlines()] == [True, True]
    assert "packed weights: 9.0 MB, 3.0 MB of them of other models; tuili rm --packed frees them" in result.stderr


def test_a_model_goes_with_its_packed_weights(store: Store) -> None:
    assert "removed beta: 5.0 MB freed" in rm(store, "beta")
    assert [line[0] for line in listed(store.home)] == ["alpha"]
    assert sorted(file.stem for file in store.packed.iterdir()) == ["1", "2"]


def test_what_is_used_where_it_lies_stays(store: Store, tmp_path: Path) -> None:
    output = rm(store, str(tmp_path / "elsewhere.gguf"))
    assert "removed alpha: 3.0 MB freed" in output
    assert f"its weights stay where they are: {tmp_path / 'elsewhere.gguf'}" in output
    assert (tmp_path / "elsewhere.gguf").exists()


def test_packed_weights_alone(store: Store) -> None:
    assert "removed packed weights of alpha: 3.0 MB freed" in rm(store, "--packed", "alpha")
    (store.packed / "3.partial").write_bytes(b"x" * 1_000_000)
    assert "removed packed weights: 7.0 MB freed" in rm(store, "--packed")
    assert not [file for file in store.packed.iterdir() if file.suffix != ".lock"]
    assert [line[0].strip() for line in listed(store.home)] == ["alpha", "beta"]


def test_kept_blocks_are_shown_and_freed(store: Store) -> None:
    for name in ("ab", "cd"):
        folder = store.prefix_cache / name
        folder.mkdir(parents=True)
        (folder / f"{name}{'0' * 46}.kv").write_bytes(b"x" * 2_000_000)
    (store.prefix_cache / "key").write_bytes(b"x" * 32)
    result = CliRunner().invoke(main, ["list", "--home", str(store.home)])
    assert "prefix cache: 4.0 MB; tuili rm --prefix-cache frees it" in result.stderr
    assert "removed the prefix cache: 4.0 MB freed" in rm(store, "--prefix-cache")
    assert not list(store.prefix_cache.glob("*/*.kv"))
    assert [line[0].strip() for line in listed(store.home)] == ["alpha", "beta"]
    assert "name none with it" in rm(store, "--prefix-cache", "alpha", code=2)


def test_what_cannot_be_removed_says_what_to_do(store: Store, tmp_path: Path) -> None:
    assert "no model 'alpa' in" in (output := rm(store, "beta", "alpa", code=1))
    assert "(did you mean alpha?); tuili list shows" in output
    assert len(listed(store.home)) == 2, "nothing is removed when one name is wrong"
    assert "or --packed" in rm(store, code=2)
    for entry in ("twin-1", "twin-2"):
        add(store, entry, f"source of {entry}", [])
        manifest = store.home / "models" / entry / "manifest.json"
        manifest.write_text(manifest.read_text().replace(f'"name": "{entry}"', '"name": "twin"'))
    assert "name one by its source: source of twin-1, source of twin-2" in rm(store, "twin", code=1)
