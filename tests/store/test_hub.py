"""Pulling from a hub: the real client against a small server on the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.store import SilentProgress, Store, StoreError, resolve
from app.store import pull as fetch
from app.store.hub import parse_hub_id
from tests.store.hub_server import COMMIT, Hub, serve_hub
from tests.store.tiny import CONFIG, write_directory

PULL = """
import sys
from pathlib import Path
from app.store import Store, StoreError, TerminalProgress, pull
try:
    print(pull(sys.argv[1], Store(Path(sys.argv[2])), TerminalProgress()).directory)
except StoreError as e:
    sys.exit(str(e))
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = write_directory(tmp_path_factory.mktemp("repo"), shards=2)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    unwanted = ("pytorch_model.bin", "model.pt", "consolidated.safetensors", "onnx/model.safetensors", "tool.py")
    return files | {"LICENSE": b"Do as you like."} | dict.fromkeys(unwanted, b"unwanted")


@pytest.fixture
def hub(repo: dict[str, bytes]) -> Iterator[Hub]:
    with serve_hub(Hub({"org/tiny": dict(repo)})) as running:
        yield running


def pull(hub: Hub, name: str, store: Store) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its environment when it is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(store.home.parent / "hf"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-W", "error::DeprecationWarning:app", "-c", PULL, name, str(store.home)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def is_empty(store: Store) -> bool:
    return not any((store.home / "models").iterdir()) and not any((store.home / "building").iterdir())


def test_repository_is_pulled_without_what_is_not_needed(hub: Hub, store: Store, repo: dict[str, bytes]) -> None:
    done = pull(hub, "org/tiny", store)
    assert (done.returncode, done.stdout) == (0, f"{store.home / 'models' / 'org--tiny'}\n"), done.stderr
    files = resolve("org/tiny", store)
    wanted = {
        "LICENSE",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in files.directory.iterdir()} == wanted | {"manifest.json"}
    assert set(hub.downloaded) == wanted
    for name in wanted:
        assert (files.directory / name).read_bytes() == repo[name]
    assert files.name == "org/tiny"
    assert [file.name for file in files.weights] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    manifest = json.loads((files.directory / "manifest.json").read_text())
    assert (manifest["source"], manifest["revision"]) == ("org/tiny", COMMIT)
    assert "Downloading org/tiny (" in done.stderr
    assert "Fetching" not in done.stderr  # the client's own bars


def test_second_pull_asks_nothing(hub: Hub, store: Store) -> None:
    assert pull(hub, "org/tiny", store).returncode == 0
    assert fetch("org/tiny", store, SilentProgress()) == resolve("org/tiny", store)  # with no such server known here


def test_revision(hub: Hub, store: Store) -> None:
    done = pull(hub, "org/tiny@refs/pr/1", store)
    assert done.stdout == f"{store.home / 'models' / 'org--tiny--refs--pr--1'}\n", done.stderr
    assert resolve("org/tiny@refs/pr/1", store).name == "org/tiny@refs/pr/1"
    with pytest.raises(StoreError, match="fetch it with: tuili pull org/tiny"):
        resolve("org/tiny", store)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/absent", "cannot fetch org/absent: no such repository"),
        ("org/tiny@v9", "cannot fetch org/tiny@v9: the repository has no such revision"),
        ("org/gated", "cannot fetch org/gated: access has to be granted"),
        ("org/pickled", "org/pickled has no safetensors weights (only pytorch_model.bin, a pickled file"),
        ("org/other", "architectures = 'OtherModel' is not supported"),
        ("org/silent", "no tokenizer.json and no other tokenizer files"),
    ],
)
def test_what_cannot_be_pulled_is_one_line(
    hub: Hub, store: Store, repo: dict[str, bytes], name: str, message: str
) -> None:
    hub.gated.add("org/gated")
    hub.repos["org/pickled"] = {"config.json": repo["config.json"], "pytorch_model.bin": b""}
    hub.repos["org/other"] = repo | {"config.json": json.dumps(CONFIG | {"architectures": ["OtherModel"]}).encode()}
    hub.repos["org/silent"] = {key: value for key, value in repo.items() if not key.startswith("tokenizer")}
    done = pull(hub, name, store)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert message in last
    assert "Traceback" not in done.stderr
    assert is_empty(store)


def test_unusable_config_is_found_before_the_weights_are_fetched(
    hub: Hub, store: Store, repo: dict[str, bytes]
) -> None:
    hub.repos["org/other"] = repo | {"config.json": json.dumps(CONFIG | {"architectures": ["OtherModel"]}).encode()}
    pull(hub, "org/other", store)
    assert hub.downloaded == ["config.json"]


def test_connection_that_breaks_in_the_weights(hub: Hub, store: Store) -> None:
    hub.break_after = 1000
    done = pull(hub, "org/tiny", store)
    assert done.returncode == 1
    assert "cannot fetch org/tiny: " in done.stderr.splitlines()[-1]
    assert is_empty(store)


def test_nobody_at_the_endpoint(hub: Hub, store: Store) -> None:
    hub.endpoint = "http://127.0.0.1:1"
    done = pull(hub, "org/tiny", store)
    assert done.returncode == 1
    assert "cannot fetch org/tiny: " in done.stderr.splitlines()[-1]
    assert is_empty(store)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("org/repo", "org--repo"),
        ("Org.x/re_po-1@main", "Org.x--re_po-1--main"),
        ("repo", None),
        ("a/b/c", None),
        ("org/..", None),
        ("../repo", None),
        ("org/a--b", None),
        (".org/repo", None),
        ("org/repo@", None),
        ("org/re po", None),
        ("org/推理", None),
    ],
)
def test_hub_ids(text: str, entry: str | None) -> None:
    hub_id = parse_hub_id(text)
    assert (hub_id and hub_id.entry) == entry
    if hub_id:
        assert str(hub_id) == text


def test_resolve_knows_the_directory_of_the_store_only(store: Store, tmp_path: Path) -> None:
    write_directory(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="model 'org/tiny' is not in"):
        resolve("org/tiny", store)
