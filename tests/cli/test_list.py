from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from app.cli import main
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
