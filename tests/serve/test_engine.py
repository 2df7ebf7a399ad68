"""Settings become the engine's configuration by their names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.contract.config import AdapterSource, EngineConfig
from app.serve.engine import NO_SETTINGS, OF_THE_MODEL, engine_config
from app.settings import Settings

# None of them a default, neither of the settings nor of the configuration.
OTHERS: dict[str, Any] = {
    "via": "transformers",
    "load_format": "dummy",
    "device": "cuda",
    "dtype": "bfloat16",
    "quantization": "int8",
    "kv_cache_dtype": "int8",
    "kv_cache_memory": 3 << 30,
    "max_model_len": 77,
    "max_num_seqs": 7,
    "max_num_batched_tokens": 777,
    "max_logit_rows": 99,
    "pipeline_depth": 2,
    "enforce_eager": True,
    "draft": "history",
    "max_draft_tokens": 5,
    "draft_ngram": 4,
    "trace_step": True,
    "threads": 5,
    "kernels": "strict",
    "seed": (1 << 64) - 1,
    "integrity_checks": True,
    "max_adapters": 5,
    "max_adapter_rank": 24,
    "prefix_cache_ram": 2 << 30,
    "prefix_cache_dir": "/blocks",
    "prefix_cache_disk": 3 << 30,
}


TOGETHER_WITH_OTHERS: dict[str, Any] = {"enable_prefix_caching": False, "tensor_parallel_size": 2}
"""The same for those that exclude some of the others."""


def test_every_field_is_a_setting_or_named_as_none() -> None:
    fields = set(EngineConfig.__struct_fields__)
    assert fields >= OF_THE_MODEL | NO_SETTINGS
    assert not (OF_THE_MODEL | NO_SETTINGS) & set(Settings.model_fields)
    assert (
        fields - OF_THE_MODEL - NO_SETTINGS == fields & set(Settings.model_fields) == {*OTHERS, *TOGETHER_WITH_OTHERS}
    )


def test_every_setting_arrives(tmp_path: Path) -> None:
    settings = Settings.model_validate({**OTHERS, "kv_cache_memory": "3GiB", "home": tmp_path})
    config = engine_config(settings, tmp_path / "model", [tmp_path / "a.gguf"], [3, 4])
    assert {name: getattr(config, name) for name in OTHERS} == OTHERS
    apart = engine_config(Settings.model_validate({**TOGETHER_WITH_OTHERS, "home": tmp_path}), tmp_path / "model")
    assert {name: getattr(apart, name) for name in TOGETHER_WITH_OTHERS} == TOGETHER_WITH_OTHERS
    assert (config.model_dir, config.weights) == (str(tmp_path / "model"), (str(tmp_path / "a.gguf"),))
    assert config.eos_token_ids == (3, 4)
    assert config.packed_cache is not None
    assert config.packed_cache.startswith(str(tmp_path))
    defaults = {field.name: field.default for field in msgspec.structs.fields(EngineConfig)}
    assert {name: getattr(config, name) for name in NO_SETTINGS} == {name: defaults[name] for name in NO_SETTINGS}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=EngineConfig) == config


def test_the_prefix_cache_lies_beside_the_models_unless_told_otherwise(tmp_path: Path) -> None:
    def directory(**fields: Any) -> str | None:
        return engine_config(Settings.model_validate({"home": tmp_path, **fields}), tmp_path / "m").prefix_cache_dir

    assert directory() is None
    assert directory(prefix_cache_disk="1GiB") == str(tmp_path / "prefix-cache")
    assert directory(prefix_cache_disk="1GiB", prefix_cache_dir="blocks") == str(Path("blocks").absolute())
    for other in ({"enable_prefix_caching": False}, {"tensor_parallel_size": 2}):
        with pytest.raises(ValueError, match=f"prefix_cache_ram.*{next(iter(other))}"):
            directory(prefix_cache_ram="1GiB", **other)


def test_adapters_are_named_with_their_directories(tmp_path: Path) -> None:
    def config(**fields: Any) -> EngineConfig:
        return engine_config(Settings.model_validate(fields), tmp_path / "model")

    assert (config().adapters, config().max_adapters) == ((), 0)
    given = config(adapter=f"a={tmp_path}/a,org/b=b=c")
    assert given.adapters == (AdapterSource("a", f"{tmp_path}/a"), AdapterSource("org/b", str(Path("b=c").absolute())))
    assert given.max_adapters == 2
    assert config(adapter={"a": "/a"}, max_adapters=3).max_adapters == 3
    for wrong in ("a", "a b=/a", "a=/a,a=/b"):
        with pytest.raises(ValueError, match="adapter"):
            config(adapter=wrong)
    with pytest.raises(ValueError, match="max_adapters"):
        config(adapter="a=/a", max_adapters=0)


def test_a_memory_plan_imports_no_web_framework() -> None:
    code = (
        "import sys, app.serve.plan\n"
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'app.api', 'app.serving'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
