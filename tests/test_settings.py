"""Settings: who wins, what is refused, what the message says."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from app import settings
from app.cli import main
from app.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUILI_CONFIG", *(f"TUILI_{field.upper()}" for field in Settings.model_fields)):
        monkeypatch.delenv(name, raising=False)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tuili.yaml"
    file.write_text("port: 1\nmax_n: 2\nmax_stop: 3\n")
    monkeypatch.setenv("TUILI_PORT", "11")
    monkeypatch.setenv("TUILI_MAX_N", "12")
    loaded, sources = settings.load({"port": "21"}, file)
    assert (loaded.port, loaded.max_n, loaded.max_stop, loaded.host) == (21, 12, 3, "127.0.0.1")
    assert sources["port"] == "flag --port"
    assert sources["max_n"] == "environment TUILI_MAX_N"
    assert sources["max_stop"] == f"file {file}"
    assert sources["host"] == "default"


def test_config_file_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tuili.yaml"
    file.write_text("max_num_seqs: 8\n")
    monkeypatch.setenv("TUILI_CONFIG", str(file))
    assert settings.load({})[0].max_num_seqs == 8


def test_values_have_units_and_lists() -> None:
    loaded, _ = settings.load({"kv_cache_memory": "2GiB", "served_model_name": ("a", "b")})
    assert loaded.kv_cache_memory == 2 << 30
    assert loaded.served_model_name == ("a", "b")


def test_names_split_on_commas_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUILI_SERVED_MODEL_NAME", "a, b")
    assert settings.load({})[0].served_model_name == ("a", "b")


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ("temperature=0.7, top_p=0.9", {"temperature": 0.7, "top_p": 0.9}),
        ("top_k=40", {"top_k": 40}),
        ("none", {}),
        ({"min_p": 0.05, "top_k": 20}, {"min_p": 0.05, "top_k": 20}),
    ],
)
def test_default_sampling(given: object, sampling: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load({"default_sampling": given})[0].default_sampling == sampling
    assert set(settings.load({})[0].default_sampling) == {"temperature"}
    if isinstance(given, str):
        monkeypatch.setenv("TUILI_DEFAULT_SAMPLING", given)
        assert settings.load({})[0].default_sampling == sampling


@pytest.mark.parametrize(
    "given",
    ["temperature", "temperature=hot", "temperature=nan", "temperature=3", "top_p=0", "top_k=1.5", "seed=1", "=1"],
)
def test_default_sampling_that_cannot_be(given: str) -> None:
    with pytest.raises(SettingsError, match="default_sampling"):
        settings.load({"default_sampling": given})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings.load({})[0].port = 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"port": "99999"}, "port = '99999' (flag --port)"),
        ({"dtype": "int3"}, "dtype = 'int3' (flag --dtype)"),
        ({"quantization": "int3"}, "quantization = 'int3' (flag --quantization): use one of auto, none, int8"),
        ({"pipeline_depth": "3"}, "pipeline_depth"),
        ({"kv_cache_memory": "0"}, "kv_cache_memory"),
        ({"max_num_seqs": "4096"}, "max_num_batched_tokens"),
        ({"drain_timeout": "inf"}, "drain_timeout"),
        ({"drain_timeout": "1e300"}, "drain_timeout"),
        ({"kv_cache_memory": "9" * 30}, "kv_cache_memory"),
        ({"max_model_len": "9" * 30}, "max_model_len"),
        ({"max_num_batched_tokens": "1000000000"}, "max_num_batched_tokens"),
        ({"seed": str(2**64)}, "seed"),
        ({"threads": "1000000"}, "threads"),
    ],
)
def test_bad_values_are_one_line_that_names_the_source(flags: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load(flags)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense: 1\n", "nonsense"),
        ("1: 2\n", "mapping"),
        ("- a\n", "mapping"),
        ("a: [", "line 1"),
        ("[" * 5000, "recursion"),
        ("port: x\n", "port"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "tuili.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        settings.load({}, file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        settings.load({}, tmp_path / "none.yaml")


def test_config_verb_prints_value_and_source() -> None:
    done = CliRunner().invoke(main, ["config", "--port", "8123"], env={"TUILI_MAX_N": "3"})
    assert done.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert lines["port"] == "8123  (flag --port)"
    assert lines["max_n"] == "3  (environment TUILI_MAX_N)"


def test_misspelt_environment_is_named() -> None:
    done = CliRunner().invoke(main, ["config"], env={"TUILI_PROT": "1"})
    assert done.exit_code == 0
    assert "TUILI_PROT is no setting (did you mean TUILI_PORT" in done.output


def test_a_misspelt_setting_of_a_file_is_told_what_is_near(tmp_path: Path) -> None:
    file = tmp_path / "tuili.yaml"
    file.write_text("max_num_seq: 3\n")
    with pytest.raises(SettingsError, match=r"unknown setting 'max_num_seq' \(file .*\) \(did you mean max_num_seqs"):
        settings.load({}, file)


def test_every_setting_but_secrets_is_an_option_with_help() -> None:
    text = CliRunner().invoke(main, ["config", "--help"]).output
    for name, field in Settings.model_fields.items():
        assert (f"{settings.flag_name(name)} " in text) == settings.has_flag(field)
        assert field.description


def test_bad_setting_exits_1() -> None:
    done = CliRunner().invoke(main, ["serve", "--port", "x"])
    assert done.exit_code == 1
    assert "tuili: error: bad setting port" in done.output


SECRET = "a-secret-of-20-chars"


def test_api_keys_are_read_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value in (f"{SECRET}, bob:metrics:x{SECRET}", SECRET):
        monkeypatch.setenv("TUILI_API_KEYS", value)
        loaded, _ = settings.load({})
        assert [key.name for key in loaded.api_keys] == ["key-1", "bob"][: len(loaded.api_keys)]
        assert SECRET not in repr(loaded)
    shown = CliRunner().invoke(main, ["config"], env={"TUILI_API_KEYS": f"{SECRET},bob:metrics:x{SECRET}"}).output
    assert "set (2 keys)  (environment TUILI_API_KEYS)" in shown
    assert SECRET not in shown
    monkeypatch.delenv("TUILI_API_KEYS")
    assert "not set" in CliRunner().invoke(main, ["config"]).output
    file = tmp_path / "tuili.yaml"
    file.write_text(f"api_keys:\n  - {SECRET}\n")
    assert len(settings.load({}, file)[0].api_keys) == 1


@pytest.mark.parametrize("value", [f"a:nothing:{SECRET}", f"{SECRET} {SECRET}", f"{SECRET},{SECRET}"])
def test_bad_api_keys_are_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TUILI_API_KEYS", value)
    with pytest.raises(SettingsError, match=r"bad setting api_keys \(environment TUILI_API_KEYS\)") as caught:
        settings.load({})
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [f"api_keys: {{a: {SECRET}}}\n", f"api_keys: [[{SECRET}]]\n", "api_keys: [12]\n"])
def test_api_keys_that_are_no_texts(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tuili.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match="keys are texts") as caught:
        settings.load({}, file)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "null", "https://*", "https://a b", "https://"])
def test_origins_are_origins(origin: str) -> None:
    with pytest.raises(SettingsError, match="cors_origins"):
        settings.load({"cors_origins": (origin,)})


@pytest.mark.parametrize("host", ["https://a.example", "a.example:80", "a b", ".example", "*.example"])
def test_hosts_are_names(host: str) -> None:
    with pytest.raises(SettingsError, match="allowed_hosts"):
        settings.load({"allowed_hosts": (host,)})
    assert settings.load({"allowed_hosts": "a.example, box_1,*"})[0].allowed_hosts == ("a.example", "box_1", "*")


def test_origins() -> None:
    origins = "https://a.example, http://localhost:3000, http://[::1]:80,*"
    assert len(settings.load({"cors_origins": origins})[0].cors_origins) == 4


def test_letters_of_other_servers() -> None:
    done = CliRunner().invoke(main, ["config", "-m", "gemma3-270m", "-c", "512"])
    assert "gemma3-270m  (flag --model)" in done.output
    assert "512  (flag --max-model-len)" in done.output


def test_a_key_on_the_command_line_is_checked_as_any_other() -> None:
    done = CliRunner().invoke(main, ["serve", "--api-key", "secret"])
    assert done.exit_code == 1
    assert "bad setting api_keys (flag --api-key): " in done.output
    assert "secret" not in done.output
    loaded, sources = settings.load({"api_keys": ("0123456789abcdef",)})
    assert len(loaded.api_keys) == 1
    assert sources["api_keys"] == "flag --api-key"
