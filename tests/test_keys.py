"""The form of API keys: what is read, what is refused, and that no message shows one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import main
from app.keys import KeyFormatError, KeyScope, distinct, parse_keys, read_key_file

KEY = "a-secret-of-20-chars"


def test_plain_and_named_keys() -> None:
    plain, named = parse_keys([KEY, f"bob:metrics+admin:with:colons:{KEY}"])
    assert (plain.name, set(plain.scopes)) == ("key-1", {KeyScope.INFER})
    assert plain.digest == hashlib.sha256(KEY.encode()).digest()
    assert (named.name, set(named.scopes)) == ("bob", {KeyScope.METRICS, KeyScope.ADMIN})
    assert named.digest == hashlib.sha256(f"with:colons:{KEY}".encode()).digest()
    assert KEY not in repr((plain, named))
    assert plain.digest.hex() not in repr(plain)


def test_admin_may_do_everything() -> None:
    infer, admin = parse_keys([KEY, f"root:admin:x{KEY}"])
    assert [infer.allows(scope) for scope in KeyScope] == [True, False, False]
    assert all(admin.allows(scope) for scope in KeyScope)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("short", "16 to 512"),
        (f"{KEY} {KEY}", "16 to 512"),
        (f"ключ{KEY}", "16 to 512"),
        (f"a:{KEY}", "NAME:SCOPES"),
        (f":infer:{KEY}", "a name has"),
        (f"a b:infer:{KEY}", "a name has"),
        (f"a\nb:infer:{KEY}", "a name has"),
        (f"{'n' * 65}:infer:{KEY}", "a name has"),
        (f"a::{KEY}", "unknown scope"),
        (f"a:infer,admin:{KEY}", "unknown scope"),
        (f"a:{KEY}:infer", "unknown scope"),
    ],
)
def test_bad_entries(entry: str, said: str) -> None:
    with pytest.raises(KeyFormatError, match=said) as caught:
        parse_keys([entry])
    assert "entry 1" in str(caught.value)
    assert KEY not in str(caught.value)


def test_names_and_keys_differ() -> None:
    with pytest.raises(KeyFormatError, match="named a"):
        parse_keys([f"a:infer:{KEY}", f"a:infer:x{KEY}"])
    with pytest.raises(KeyFormatError, match="a and b are the same"):
        parse_keys([f"a:infer:{KEY}", f"b:admin:{KEY}"])
    with pytest.raises(KeyFormatError, match="more than 1024"):
        distinct(parse_keys([f"n{i}:infer:{KEY}{i}" for i in range(1025)]))


def test_a_new_key_is_known_by_its_line(tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["keys", "new", "--name", "alice", "--scopes", "infer,metrics"])
    assert made.exit_code == 0
    key, line = made.stdout.splitlines()
    assert key not in line
    file = tmp_path / "keys"
    file.write_text(f"# who has one\n\n  {line}  \n")
    (read,) = read_key_file(file)
    assert (read.name, set(read.scopes)) == ("alice", {KeyScope.INFER, KeyScope.METRICS})
    assert read.digest == hashlib.sha256(key.encode()).digest()
    assert CliRunner().invoke(main, ["keys", "new", "--name", "alice"]).stdout.splitlines()[0] != key


@pytest.mark.parametrize("arguments", [["--name", "a:b"], ["--name", "a", "--scopes", "all"]])
def test_no_key_for_bad_names_and_scopes(arguments: list[str]) -> None:
    made = CliRunner().invoke(main, ["keys", "new", *arguments])
    assert made.exit_code == 1
    assert made.stdout == ""
    assert "tuili: error:" in made.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no key"),
        (b"# nothing\n", "no key"),
        (b"\xff\xfe", "UTF-8"),
        (f"\na:infer:{KEY}\n".encode(), "line 2: the last part"),
        (f"a:infer:{'A' * 64}\n".encode(), "lower-case hex"),
        (f"a:infer:{'a' * 64}\na:admin:{'b' * 64}\n".encode(), "two API keys"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(KeyFormatError, match=said) as caught:
        read_key_file(file)
    assert str(file) in str(caught.value)
    assert KEY not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFormatError, match="No such file"):
        read_key_file(tmp_path / "none")
