"""Pulling from a hub: the real client against a small server on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.store import SilentProgress, Store, StoreError, resolve
from app.store import pull as fetch
from app.store.hub_files import wanted_files
from app.store.hub_id import HubId, at_revision, parse_hub_id
from tests.store.hub_server import COMMIT, Hub, serve_hub
from tests.store.tiny import CONFIG, write_directory, write_gguf

PULL = """
import os, sys
from pathlib import Path
from huggingface_hub import constants
from app.store import Store, StoreError, TerminalProgress, pull
constants.DOWNLOAD_CHUNK_SIZE = int(os.environ.get("PIECES", constants.DOWNLOAD_CHUNK_SIZE))
failed = False
for name in sys.argv[1].split():
    try:
        print(pull(name, Store(Path(sys.argv[2])), TerminalProgress(), via=sys.argv[3] or None).directory)
    except StoreError as e:
        failed = True
        print(e, file=sys.stderr)
sys.exit(failed)
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


def pull(hub: Hub, name: str, store: Store, via: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its environment when it is imported.

    Args:
        name: several may be pulled one after the other, with spaces between them.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(store.home.parent / "hf"), "NO_PROXY": "127.0.0.1"}
    environment |= variables
    command = [sys.executable, "-W", "error::DeprecationWarning:app", "-c", PULL, name, str(store.home), via]
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


REFUSED = {
    "org/absent": "cannot fetch org/absent: no such repository",
    "org/tiny@v9": "cannot fetch org/tiny@v9: the repository has no such revision",
    "org/gated": "cannot fetch org/gated: access has to be granted",
    "org/pickled": "org/pickled has no safetensors weights (only pytorch_model.bin, a pickled file",
    "org/other": "architectures = 'OtherModel' is not supported",
    "org/silent": "no tokenizer.json and no other tokenizer files",
}


def test_what_cannot_be_pulled_is_one_line(hub: Hub, store: Store, repo: dict[str, bytes]) -> None:
    hub.gated.add("org/gated")
    hub.repos["org/pickled"] = {"config.json": repo["config.json"], "pytorch_model.bin": b""}
    hub.repos["org/other"] = repo | {"config.json": json.dumps(CONFIG | {"architectures": ["OtherModel"]}).encode()}
    hub.repos["org/silent"] = {key: value for key, value in repo.items() if not key.startswith("tokenizer")}
    done = pull(hub, " ".join(REFUSED), store)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    for message in REFUSED.values():
        assert sum(message in line for line in lines) == 1, done.stderr
    assert message in lines[-1]
    assert "Traceback" not in done.stderr
    assert is_empty(store)


def test_unusable_config_is_found_before_the_weights_are_fetched(
    hub: Hub, store: Store, repo: dict[str, bytes]
) -> None:
    hub.repos["org/other"] = repo | {"config.json": json.dumps(CONFIG | {"architectures": ["OtherModel"]}).encode()}
    pull(hub, "org/other", store)
    assert hub.downloaded == ["config.json"]


def test_what_another_library_computes_is_pulled_whatever_it_is(hub: Hub, store: Store, repo: dict[str, bytes]) -> None:
    hub.repos["org/other"] = repo | {"config.json": json.dumps(CONFIG | {"architectures": ["OtherModel"]}).encode()}
    assert pull(hub, "org/other", store, via="transformers").returncode == 0
    assert resolve("org/other", store, via="transformers").config["architectures"] == ["OtherModel"]
    with pytest.raises(StoreError, match="'OtherModel' is not supported"):
        resolve("org/other", store)


OFFLINE = {"HF_HUB_OFFLINE": "1"}


def test_connection_that_breaks_in_the_weights(hub: Hub, store: Store) -> None:
    """Half of the files are no model afterwards either."""
    hub.break_after = 1000
    done = pull(hub, "org/tiny", store)
    assert done.returncode == 1
    assert "cannot fetch org/tiny: " in done.stderr.splitlines()[-1]
    assert is_empty(store)
    done = pull(hub, "org/tiny", store, **OFFLINE)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cannot fetch org/tiny: HF_HUB_OFFLINE is set, and ")
    assert "does not hold all of it (" in last
    assert is_empty(store)


def test_a_download_that_breaks_goes_on_where_it_was(hub: Hub, store: Store, repo: dict[str, bytes]) -> None:
    """By pieces, which are smaller here than the client has them."""
    hub.cuts = [1000]
    assert pull(hub, "org/tiny", store, PIECES="100").returncode == 0
    assert hub.resumed == [1000]
    for file in resolve("org/tiny", store).weights:
        assert file.read_bytes() == repo[file.name]


def test_the_next_pull_fetches_what_is_missing_alone(hub: Hub, store: Store) -> None:
    second = hub.repos["org/tiny"].pop("model-00002-of-00002.safetensors")
    hub.repos["org/tiny"]["tokenizer_config.json"] += b" "
    failed = pull(hub, "org/tiny", store)
    assert "model-00002-of-00002.safetensors is missing" in failed.stderr.splitlines()[-1]
    assert is_empty(store)
    hub.repos["org/tiny"]["model-00002-of-00002.safetensors"] = second
    hub.downloaded.clear()
    shutil.rmtree(trees_of(store), ignore_errors=True)  # the client takes it that a commit never changes
    assert pull(hub, "org/tiny", store).returncode == 0
    assert hub.downloaded == ["model-00002-of-00002.safetensors"]


def trees_of(store: Store, cache: str = "hf/hub") -> Path:
    return store.home.parent / cache / "models--org--tiny" / "trees"


@pytest.mark.parametrize(("variable", "cache"), [("HF_HOME", "elsewhere/hub"), ("HF_HUB_CACHE", "elsewhere")])
def test_files_lie_in_the_cache_of_the_hubs_client(hub: Hub, store: Store, variable: str, cache: str) -> None:
    """Once: the store has the same files."""
    where = store.home.parent / "elsewhere"
    assert pull(hub, "org/tiny", store, **{variable: str(where)}).returncode == 0
    snapshot = store.home.parent / cache / "models--org--tiny" / "snapshots" / COMMIT
    for file in resolve("org/tiny", store).weights:
        assert file.samefile(snapshot / file.name)
    shutil.rmtree(where)
    assert all(file.is_file() for file in resolve("org/tiny", store).weights)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second disk")
def test_a_cache_on_another_disk_is_linked_to(hub: Hub, store: Store) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as cache:
        if Path(cache).stat().st_dev == store.home.parent.stat().st_dev:
            pytest.skip("the same disk")
        assert pull(hub, "org/tiny", store, HF_HUB_CACHE=cache).returncode == 0
        assert all(file.is_symlink() for file in resolve("org/tiny", store).weights)
    with pytest.raises(StoreError, match=r"missing; delete .*org--tiny, then: tuili pull org/tiny"):
        resolve("org/tiny", store)


def test_the_cache_is_enough_offline_and_when_nobody_answers(hub: Hub, store: Store, tmp_path: Path) -> None:
    name = "org/tiny@v1.0"
    assert pull(hub, name, store).returncode == 0
    hub.downloaded.clear()
    for entry, variables in (("offline", OFFLINE), ("unreachable", {"HF_ENDPOINT": "http://127.0.0.1:1"})):
        fresh = Store(tmp_path / entry)
        done = pull(hub, name, fresh, **variables)
        assert done.returncode == 0, done.stderr
        assert f"Taking {name} from the cache of the hub's client" in done.stderr
        assert resolve(name, fresh).weights[0].samefile(resolve(name, store).weights[0])
    assert not hub.downloaded


def test_offline_without_a_cache_is_one_line(hub: Hub, store: Store) -> None:
    done = pull(hub, "org/tiny", store, **OFFLINE)
    assert done.returncode == 1
    cache = store.home.parent / "hf" / "hub"
    said = f"cannot fetch org/tiny: HF_HUB_OFFLINE is set, and {cache} does not hold all of it"
    assert done.stderr.splitlines()[-1] == said
    assert is_empty(store)


GATED = {"org/gated"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "access has to be granted on the hub first; then set HF_TOKEN"),
        ({"HF_TOKEN": "hf_other"}, "access has to be granted on the hub to the account whose token is sent (HF_TOKEN)"),
        ({"HF_TOKEN": "hf_wrong"}, "the hub refuses the token that is sent (HF_TOKEN): 401"),
        (
            {"HF_TOKEN": "hf_good", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"},
            "access has to be granted on the hub first; then set HF_TOKEN, and HF_HUB_DISABLE_IMPLICIT_TOKEN not",
        ),
        ({"HF_TOKEN": "hf_good"}, None),
        ({}, None),
    ],
)
def test_tokens(
    hub: Hub, store: Store, repo: dict[str, bytes], variables: dict[str, str], message: str | None, tmp_path: Path
) -> None:
    """From the variable or the file of the client's login."""
    hub.repos["org/gated"], hub.gated = dict(repo), GATED
    hub.tokens = {"hf_good": GATED, "hf_other": set()}
    if message is None and not variables:
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text("hf_good\n")
    done = pull(hub, "org/gated", store, **variables)
    if message is None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"cannot fetch org/gated: {message}"
    assert "hf_" not in done.stderr


@pytest.mark.parametrize("verb", ["pull", "serve"])
def test_a_revision_may_be_a_setting(hub: Hub, store: Store, verb: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(store.home.parent / "hf"), "NO_PROXY": "127.0.0.1"}
    model = ["org/tiny"] if verb == "pull" else ["--model", "org/tiny", "--port", "0"]
    command = [sys.executable, "-m", "app.cli", verb, *model, "--revision", "v9", "--home", str(store.home)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot fetch org/tiny@v9: the repository has no such revision" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("org/tiny", None, "org/tiny"),
        ("smollm2-135m", None, "smollm2-135m"),
        ("org/tiny", "refs/pr/1", "org/tiny@refs/pr/1"),
        ("org/tiny@v1.0", "v1.0", "org/tiny@v1.0"),
        ("org/tiny@v1.0", "main", "names another one"),
        ("smollm2-135m", "main", "'smollm2-135m' is no hub id, which alone has revisions"),
        ("./model.gguf", "main", "is no hub id"),
        ("tests/store", "main", "is no hub id"),
        ("org/tiny", "a b", "revision = 'a b' is no branch, tag or commit"),
    ],
)
def test_a_revision_goes_with_a_hub_id(name: str, revision: str | None, expected: str) -> None:
    if expected.startswith(name):
        assert at_revision(name, revision) == expected
        return
    with pytest.raises(StoreError, match=expected):
        at_revision(name, revision)


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
        ("org/repo:Q4_K_M", "org--repo..Q4_K_M"),
        ("org/repo@v1/x:Q8_0", "org--repo--v1--x..Q8_0"),
        ("org/repo:", None),
        ("org/repo:a/b", None),
        ("org/repo:..", None),
    ],
)
def test_hub_ids(text: str, entry: str | None) -> None:
    hub_id = parse_hub_id(text)
    assert (hub_id and hub_id.entry) == entry
    if hub_id:
        assert str(hub_id) == text


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("hf.co/org/repo", "org/repo"),
        ("huggingface.co/org/repo:Q4_K_M", "org/repo:Q4_K_M"),
        ("https://hf.co/org/repo/", "org/repo"),
        ("hf.co/org", None),
        ("https://hf.co/org/repo/blob/main/a.gguf", None),
        ("https://example.com/org/repo", None),
    ],
)
def test_addresses_of_the_hub(address: str, name: str | None) -> None:
    hub_id = parse_hub_id(address)
    assert (hub_id and str(hub_id)) == name


def test_resolve_knows_the_directory_of_the_store_only(store: Store, tmp_path: Path) -> None:
    write_directory(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="model 'org/tiny' is not in"):
        resolve("org/tiny", store)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@pytest.fixture
def ggufs(hub: Hub, gguf: bytes) -> Hub:
    """A repository of one model's GGUF files, of which one is whole."""
    names = ("tiny-Q4_0.gguf", "tiny-Q4_K_M.gguf", "tiny-Q8_0-00002-of-00002.gguf", "mmproj-tiny-Q8_0.gguf")
    hub.repos["org/tiny-GGUF"] = dict.fromkeys(names, b"GGUF") | {"tiny-F16.gguf": gguf, "LICENSE": b"Free."}
    return hub


def test_one_gguf_file_of_many(ggufs: Hub, store: Store) -> None:
    done = pull(ggufs, "hf.co/org/tiny-GGUF:f16", store)
    assert done.returncode == 0, done.stderr
    files = resolve("hf.co/org/tiny-GGUF:f16", store)
    assert files == resolve("org/tiny-GGUF:f16", store)
    assert files.name == "org/tiny-GGUF:f16"
    assert [path.name for path in files.weights] == ["tiny-F16.gguf"]
    assert set(ggufs.downloaded) == {"tiny-F16.gguf", "LICENSE"}
    with pytest.raises(StoreError, match="via transformers no GGUF files are read"):
        resolve("org/tiny-GGUF:f16", store, via="transformers")


def test_a_gguf_file_comes_out_of_the_cache_offline(ggufs: Hub, store: Store, tmp_path: Path) -> None:
    assert pull(ggufs, "org/tiny-GGUF:F16", store).returncode == 0
    other = Store(tmp_path / "another")
    done = pull(ggufs, "org/tiny-GGUF:F16", other, **OFFLINE, HF_HOME=str(store.home.parent / "hf"))
    assert done.returncode == 0, done.stderr
    missing = pull(ggufs, "org/tiny-GGUF:Q4_0", other, **OFFLINE, HF_HOME=str(store.home.parent / "hf"))
    assert "no GGUF file of 'Q4_0'" in missing.stderr


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf"], None, ["m-Q4_K_M.gguf"]),
        (["m-Q5_0.gguf", "m-F16.gguf"], None, ["m-F16.gguf"]),
        (["m.gguf"], None, ["m.gguf"]),
        (["m.gguf", "model.safetensors"], None, ["model.safetensors"]),
        (
            ["Q8/m-Q8_0-00002-of-00002.gguf", "Q8/m-Q8_0-00001-of-00002.gguf"],
            "q8_0",
            ["Q8/m-Q8_0-00001-of-00002.gguf", "Q8/m-Q8_0-00002-of-00002.gguf"],
        ),
        (["m-Q8_0.gguf", "n-Q8_0.gguf"], "m-q8_0.gguf", ["m-Q8_0.gguf"]),
    ],
)
def test_which_gguf_file_is_taken(names: list[str], asked: str | None, expected: list[str]) -> None:
    assert wanted_files(HubId("org/repo", quant=asked), names) == expected


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (["m-Q8_0.gguf"], "Q8_1", r"no GGUF file of 'Q8_1' \(did you mean Q8_0\?\); there are: m-Q8_0"),
        (["m-Q8_0.gguf", "n-Q8_0.gguf"], "Q8_0", "several files are of 'Q8_0': m-Q8_0, n-Q8_0"),
        (["model.safetensors"], "Q8_0", "org/repo has no GGUF files"),
        (["mmproj-Q8_0.gguf"], None, "no safetensors weights"),
    ],
)
def test_no_gguf_file_can_be_taken(names: list[str], asked: str | None, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        wanted_files(HubId("org/repo", quant=asked), names)
