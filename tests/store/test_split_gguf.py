"""A GGUF model in several files is served by any file's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import main
from app.contract.config import EngineConfig
from app.runner.start import make_runner
from app.store import SilentProgress, Store, StoreError, locate_config, pull, resolve
from tests.runner.driver import Request, discard, run
from tests.store.tiny import parts, write_gguf


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    return parts(write_gguf(tmp_path / "Tiny Model.gguf", split=5))


def test_any_file_is_the_model(split: list[Path], store: Store) -> None:
    first = resolve(str(split[0]), store)
    assert first.name == "Tiny Model"
    assert first.weights == tuple(split)
    assert all(resolve(str(part), store) == first for part in split)
    assert pull(str(split[1]), store, SilentProgress()) == first
    assert locate_config(str(split[2]), store) == ("Tiny Model", first.directory)
    assert len(list((store.home / "models").iterdir())) == 1
    assert first.config == resolve(str(write_gguf(split[0].with_name("whole.gguf"))), store).config


def test_a_part_that_changed_is_noticed(split: list[Path], store: Store) -> None:
    before = resolve(str(split[0]), store)
    write_gguf(split[0].with_name("Tiny Model.gguf"), split=5, extra={"tokenizer.chat_template": "other"})
    after = resolve(str(split[2]), store)
    assert after.chat_template == "other"
    assert not before.directory.exists()


def test_it_gives_the_tokens_of_one_file(split: list[Path], store: Store) -> None:
    answers = []
    for path in (split[1], write_gguf(split[0].with_name("whole.gguf"))):
        files = resolve(str(path), store)
        config = EngineConfig(
            model_dir=str(files.directory), weights=tuple(map(str, files.weights)), num_blocks=8, kernels="reference"
        )
        request = Request(0, [5, 6, 7], [0, 1])
        run(make_runner(config, discard), [request], 8)
        answers.append(request.outputs)
    assert answers[0] == answers[1]


def test_a_missing_file_is_one_line_wherever_it_is_asked_for(split: list[Path], store: Store) -> None:
    resolve(str(split[0]), store)
    split[1].unlink()
    message = f"{split[1]}: missing, part 2 of {len(split)} of a model"
    for find in (resolve, lambda name, home: pull(name, home, SilentProgress()), locate_config):
        with pytest.raises(StoreError) as caught:
            find(str(split[0]), store)
        assert str(caught.value) == message
    for verb in (
        ["pull", str(split[0])],
        ["plan", str(split[0]), "--gpu-memory", "1GiB"],
        ["serve", "--model", str(split[0])],
    ):
        done = CliRunner().invoke(main, [*verb, "--home", str(store.home)])
        assert done.exit_code == 1
        assert message in done.output


def test_a_file_of_another_model_is_one_line(split: list[Path], store: Store) -> None:
    split[1].write_bytes(split[2].read_bytes())
    with pytest.raises(StoreError, match=r"no part of the model of .*: split\.no = 2, not 1") as caught:
        resolve(str(split[0]), store)
    assert "\n" not in str(caught.value)
    assert not any((store.home / "models").iterdir())
