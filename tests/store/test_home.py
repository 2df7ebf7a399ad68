from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from app.store import ModelNotFound, SilentProgress, Store, StoreError, resolve
from app.store.home import Manifest, default_home, slug

SILENT = SilentProgress()


def build(directory: Path) -> Manifest:
    (directory / "file").write_text("whole")
    return Manifest(name="m", source="test")


def leftovers(store: Store) -> list[str]:
    return [path.name for room in ("building", "models") for path in (store.home / room).glob("*")]


def test_home_comes_from_the_environment_or_the_cache_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TUILI_HOME", str(tmp_path / "given"))
    assert default_home() == tmp_path / "given"
    monkeypatch.delenv("TUILI_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_home() == tmp_path / "cache" / "tuili"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_home() == tmp_path / ".cache" / "tuili"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_home() == tmp_path / "Library" / "Caches" / "tuili"


def test_home_without_a_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="~no-such-user/x: no such user; set TUILI_HOME"):
        Store(Path("~no-such-user/x"))

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TUILI_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(StoreError, match="this user has no home directory; set TUILI_HOME"):
        Store()
    with pytest.raises(ModelNotFound, match=f"tuili pull smollm2-135m --home {tmp_path}"):
        resolve("smollm2-135m", Store(tmp_path))


def test_home_is_private_and_made_only_when_written(store: Store) -> None:
    assert store.find("m") is None
    assert not store.home.exists()
    store.create("m", build, SILENT)
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o700


def test_wider_mode_of_our_own_home_is_tightened(store: Store) -> None:
    store.home.mkdir()
    store.home.chmod(0o777)
    assert store.find("m") is None
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o700


def test_directory_with_other_things_in_it_keeps_its_mode(store: Store) -> None:
    store.home.mkdir(mode=0o755)
    (store.home / "documents").mkdir()
    store.create("m", build, SILENT)
    assert store.find("m") is not None
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o755
    assert stat.S_IMODE((store.home / "models").stat().st_mode) == 0o700
    store.home.chmod(0o1777)
    with pytest.raises(StoreError, match="set TUILI_HOME to a directory below"):
        store.find("m")
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o1777


@pytest.mark.parametrize(("owner", "mode", "trusted"), [(0, 0o755, True), (0, 0o775, False), (4242, 0o755, False)])
def test_home_of_another_user(
    store: Store, monkeypatch: pytest.MonkeyPatch, owner: int, mode: int, trusted: bool
) -> None:
    real = Path.stat

    def stat_of_another(path: Path, **options: bool) -> os.stat_result:
        if path != store.home:
            return real(path, **options)
        fields = list(real(path, **options))
        fields[stat.ST_MODE], fields[stat.ST_UID] = stat.S_IFDIR | mode, owner
        return os.stat_result(fields)

    store.create("m", build, SILENT)
    monkeypatch.setattr(Path, "stat", stat_of_another)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if trusted:
        assert store.find("m") is not None
    else:
        with pytest.raises(StoreError, match="other users may write to it"):
            store.find("m")


def test_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        Store(tmp_path / "file" / "below").create("m", build, SILENT)
    with pytest.raises(StoreError, match="is not a directory"):
        Store(tmp_path / "file").find("m")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../a", "a\0", "a" * 129, "推理"])
def test_names_stay_below_the_home(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="is no model name"):
        store.find(name)


@pytest.mark.parametrize("text", ["Smol LM/2--x", "...", "-", "推理", "a" * 500])
def test_slug_never_has_what_only_hub_entries_have(text: str) -> None:
    assert "--" not in slug(text)
    assert "/" not in slug(text)
    assert not slug(text).startswith(".")


def test_created_once(store: Store) -> None:
    directory, manifest = store.create("m", build, SILENT)
    assert store.find("m") == (directory, manifest)
    assert (directory / "file").read_text() == "whole"

    def again(_: Path) -> Manifest:
        raise AssertionError("built twice")

    assert store.create("m", again, SILENT) == (directory, manifest)


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt(), StoreError("no")])
def test_failed_build_leaves_nothing(store: Store, failure: BaseException) -> None:
    def fail(directory: Path) -> Manifest:
        build(directory)
        raise failure

    with pytest.raises(type(failure)):
        store.create("m", fail, SILENT)
    assert leftovers(store) == []
    store.create("m", build, SILENT)
    assert leftovers(store) == ["m"]


@pytest.mark.parametrize("manifest", ["{", '{"name": "m", "source": "s", "format": 0}', '{"older": true}'])
def test_entry_of_another_format_is_built_again(store: Store, manifest: str) -> None:
    directory, _ = store.create("m", build, SILENT)
    (directory / "manifest.json").write_text(manifest)
    (directory / "file").write_text("old")
    assert store.find("m") is None
    store.create("m", build, SILENT)
    assert (directory / "file").read_text() == "whole"
    assert leftovers(store) == ["m"]


def test_killed_builder_leaves_no_entry_and_the_next_pull_clears_up(store: Store) -> None:
    script = f"""
import time
from pathlib import Path
from app.store import SilentProgress, Store
def build(directory):
    (directory / "half").touch()
    print("building", flush=True)
    time.sleep(600)
Store(Path({str(store.home)!r})).create("killed", build, SilentProgress())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        other = Store(store.home)
        other.create("meanwhile", build, SILENT)
        assert (store.home / "building" / "killed" / "half").exists()  # its builder lives
        process.kill()
    assert store.find("killed") is None
    store.create("next", build, SILENT)
    assert sorted(leftovers(store)) == ["meanwhile", "next"]


def test_files_of_others_in_the_rooms_are_left_alone(store: Store) -> None:
    store.create("m", build, SILENT)
    for room in ("models", "building"):
        (store.home / room / ".DS_Store").touch()
    store.create("n", build, SILENT)
    assert [name for name, _ in store.entries()] == ["m", "n"]


def test_concurrent_pulls_build_once_and_all_get_it(store: Store) -> None:
    builds: list[int] = []
    waited: list[str] = []

    class Recording(SilentProgress):
        def task(self, description: str, total: int | None = None):  # type: ignore[no-untyped-def]
            waited.append(description)
            return super().task(description, total)

    def slow(directory: Path) -> Manifest:
        builds.append(1)
        time.sleep(0.3)
        return build(directory)

    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(Store(store.home).create("m", slow, Recording())[0]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert found == [store.home / "models" / "m"] * 4
    assert waited
    assert set(waited) == {"Waiting for another process to finish m"}


def test_remove(store: Store) -> None:
    store.create("m", build, SILENT)
    store.remove("m", SILENT)
    store.remove("m", SILENT)
    assert leftovers(store) == []
