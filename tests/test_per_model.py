"""Settings of several models: who says what, and what cannot be said."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import settings
from app.duration import FOREVER
from app.per_model import come_and_go, per_model
from app.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUILI_CONFIG", *(f"TUILI_{field.upper()}" for field in Settings.model_fields)):
        monkeypatch.delenv(name, raising=False)


def test_one_model_is_served_as_ever() -> None:
    loaded, _ = settings.load({"model": "a"})
    assert per_model(loaded) == (loaded,)
    assert not come_and_go(loaded)
    for said in ({"keep_alive": "5m"}, {"preload": "false"}, {"model_memory": "4GiB"}):
        assert come_and_go(settings.load({"model": "a", **said})[0])
    assert not come_and_go(settings.load({"models": ("a",)})[0])


def test_each_has_the_servers_settings_and_over_them_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tuili.yaml"
    file.write_text(
        "keep_alive: 10m\nmax_num_seqs: 8\nmodels:\n- a\n- model: b\n  keep_alive: -1\n  max_num_seqs: 4\n"
        "  served_model_name: [c, d]\n  kv_cache_memory: 1GiB\n"
    )
    monkeypatch.setenv("TUILI_API_KEYS", "sk-0123456789abcdef")
    loaded, sources = settings.load({"threads": "2"}, file)
    first, second = per_model(loaded)
    assert second.api_keys == loaded.api_keys != ()
    assert (first.model, first.keep_alive, first.max_num_seqs, first.threads) == ("a", 600, 8, 2)
    assert (second.model, second.keep_alive, second.max_num_seqs, second.threads) == ("b", FOREVER, 4, 2)
    assert (second.served_model_name, second.kv_cache_memory) == (("c", "d"), 1 << 30)
    assert sources["models"] == f"file {file}"
    assert come_and_go(loaded)


def test_the_stronger_source_says_whether_it_is_one_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tuili.yaml"
    file.write_text("models: [a, b]\n")
    assert [each.model for each in per_model(settings.load({}, file)[0])] == ["a", "b"]
    assert [each.model for each in per_model(settings.load({"model": "c"}, file)[0])] == ["c"]
    monkeypatch.setenv("TUILI_MODEL", "d")
    assert [each.model for each in per_model(settings.load({"models": ("e", "f")})[0])] == ["e", "f"]
    monkeypatch.setenv("TUILI_MODELS", "g, h")
    with pytest.raises(SettingsError, match="both given"):
        settings.load({})


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"served_model_name": "x"}], r"models\[0\].*missing"),
        (["a", {"model": "b", "port": 1}], r"models\[1\] \(b\): 'port' is a setting of the whole server"),
        (["a", {"model": "b", "nonsense": 1}], r"models\[1\] \(b\): 'nonsense' is no setting"),
        (["a", {"model": "b", "max_num_seqs": 0}], r"models\[1\] \(b\): bad setting max_num_seqs"),
        (["a", {"model": "b", "keep_alive": "soon"}], r"models\[1\] \(b\): bad setting keep_alive.*duration"),
        (["a", {"model": "b", "served_model_name": "*"}], "only the first"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_model(models: list[object], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        per_model(settings.load({"models": models})[0])
    assert "\n" not in str(caught.value)


def test_a_name_for_all_is_a_name_for_none() -> None:
    with pytest.raises(SettingsError, match="served_model_name is of one model"):
        per_model(settings.load({"models": ("a", "b"), "served_model_name": ("c",)})[0])
