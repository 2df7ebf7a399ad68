"""Every setting there is, in one frozen tree.

A value comes from, strongest first: command-line flag, environment variable (``TUILI_<NAME>``), YAML file
(``--config`` or ``TUILI_CONFIG``), default. ``tuili config`` prints each value and where it came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from app.contract.request import DEFAULT_SAMPLING
from app.nearest import did_you_mean
from app.setting_values import (
    Adapters,
    BatchSize,
    Bytes,
    Count,
    Duration,
    Hosts,
    Keys,
    Models,
    Names,
    Origins,
    Quantization,
    Sampling,
    Seconds,
)

ENV_PREFIX = "TUILI_"
NO_FLAG: dict[str, Any] = {"flag": False}
"""Marks a secret: it is never shown, and an option of `tuili serve` alone."""
_TIERS = ("prefix_cache_ram", "prefix_cache_dir", "prefix_cache_disk")


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line that names it, its source and what is wrong."""


class Settings(BaseSettings):
    """What ``tuili serve`` can be told."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    # Model
    model: str = Field("smollm2-135m", min_length=1, description="Built-in name, directory, .gguf file or hub id.")
    models: Models = Field(
        (),
        description="Several models, each loaded when it is asked for. May repeat. In YAML each is a name, or a "
        "mapping of model and settings of its own.",
    )
    keep_alive: Duration | None = Field(
        None,
        description="How long a model stays loaded without work (300, 5m, 1h30m; 0; -1: for ever). Left out: for ever "
        "where there is one, 5m where there are several.",
    )
    preload: bool | None = Field(None, description="Load a model at the start. Left out: of several the first alone.")
    model_memory: Bytes | None = Field(
        None,
        description="Memory that loaded models may take together, e.g. 12GiB; else what the machine has. Those without "
        "work go, least recently used first.",
    )
    revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of a hub id; or write ID@REVISION."
    )
    served_model_name: Names = Field(
        (),
        description="Name(s) that clients use; the model's own name when absent. May repeat. *: any other one, too.",
    )
    chat_template_name: str | None = Field(
        None, min_length=1, description="Which of the model's chat templates is taken where a request names none."
    )
    tool_format: str = Field(
        "auto", min_length=1, description="Format of the model's tool calls, by name; auto: as its chat template shows."
    )
    reasoning_format: str = Field(
        "auto",
        min_length=1,
        description="Marks around the model's thought, by name; auto: as its chat template shows; none: it is content.",
    )
    default_sampling: Sampling = Field(
        DEFAULT_SAMPLING,
        description="How a model samples by default that recommends nothing itself (generation_config.json, GGUF), "
        "e.g. temperature=0.7,top_p=0.9; none: at temperature 1.",
    )
    adapter: Adapters = Field(
        (),
        description="NAME=PATH of an adapter (LoRA) that requests may name as their model: a directory with "
        "adapter_config.json and adapter_model.safetensors. May repeat.",
    )
    max_adapters: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None, description="Adapters that there is room for at once, to load some at run time; else those of --adapter."
    )
    max_adapter_rank: Annotated[int, Field(ge=1, le=512)] | None = Field(
        None, description="Greatest rank of an adapter; that of those of --adapter when absent, 16 at least."
    )
    home: Path | None = Field(None, description="Directory of pulled models; the platform's cache when absent.")
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights from the config.")
    via: Literal["transformers"] | None = Field(
        None,
        description="transformers: it computes the model, slowly, for models that no family is for; needs tuili[via].",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Activations, and weights that are not quantised; auto is the fastest that keeps quality.",
    )
    quantization: Quantization = Field(
        "auto",
        description="Weights; auto is int8 on a CPU with native kernels unless a dtype is given. int8 quantises "
        "activations too, int8_weight_only (GPUs) does not; file (CPUs) keeps a GGUF file's blocks as they are.",
    )
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="KV cache; auto is as the weights are with native kernels, otherwise as dtype."
    )
    kernels: Literal["auto", "reference", "strict"] = Field(
        "auto", description="reference: plain torch. strict: native ones, or an error instead of plain torch."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = Field(0, description="Seed of dummy weights.")

    # Server
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="Port to listen on; 0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal.")
    api_keys: Keys = Field(
        (),
        description="Keys that clients need, comma-separated: KEY, or NAME:SCOPE+SCOPE:KEY (infer, metrics, admin).",
        json_schema_extra=NO_FLAG,
    )
    api_key_file: Path | None = Field(None, description="File of hashed keys, as `tuili keys new` prints them.")
    insecure: bool = Field(False, description="Listen beyond this machine even though no key is needed.")
    cors_origins: Origins = Field(
        (), description="Origin(s) whose pages may read answers in a browser, e.g. https://a.example. May repeat."
    )
    allowed_hosts: Hosts = Field(
        (), description="Name(s) by which clients may call a server that needs no key; * for any. May repeat."
    )
    page: bool = Field(True, description="Show browsers a chat at / and the API's page at /docs.")
    strict_params: bool = Field(False, description="Refuse unknown request fields instead of naming them back.")
    keepalive_interval: Seconds = Field(15.0, description="Seconds of silence before a stream gets a comment line.")
    drain_delay: Seconds = Field(0.0, description="Seconds to keep accepting after SIGTERM, readiness being 503.")
    drain_timeout: Seconds = Field(30.0, description="Seconds that streams get to finish after that.")
    stall_timeout: Seconds | None = Field(
        None,
        description="Seconds without progress, work waiting, after which the engine is killed and started again: more "
        "than any one step takes; 0: never. Left out: from the pace of the steps so far, 60 to 600 s.",
    )

    # Kept answers (/v1/responses)
    response_store: str = Field(
        "memory", min_length=1, description="Where answers are kept: a file (SQLite), memory, or none."
    )
    response_ttl: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = Field(
        30 * 86400.0, description="Seconds after which a kept answer is removed."
    )
    response_store_size: Bytes = Field(ByteSize(128 << 20), description="Most bytes of kept answers; the oldest go.")

    # Limits of a request
    max_queue: Count = Field(256, description="Sequences that may wait; more are answered 429.")
    max_body_bytes: Bytes = Field(ByteSize(16 << 20), description="Largest request body, e.g. 16MiB.")
    max_n: Count = Field(16, description="Most choices a prompt.")
    max_prompts: Count = Field(256, description="Most prompts a request.")
    max_logprobs: Annotated[int, Field(ge=0, lt=1 << 31)] = Field(20, description="Most alternatives a token.")
    max_stop: Count = Field(16, description="Most stop strings a request.")
    request_timeout: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = Field(
        600.0, description="Seconds after which a request is given up."
    )

    # Engine
    max_model_len: Count | None = Field(None, description="Longest prompt + answer; the model's own when absent.")
    max_num_seqs: BatchSize = Field(64, description="Sequences that run at once.")
    max_num_batched_tokens: BatchSize = Field(1024, description="Tokens computed in one step.")
    max_logit_rows: BatchSize = Field(256, description="Rows of logits in one step.")
    kv_cache_memory: Bytes | None = Field(
        None,
        description="Memory for each rank's KV cache, e.g. 2GiB; else 1GiB on a CPU and all that is left on a GPU.",
    )
    enable_prefix_caching: bool = Field(True, description="Reuse the KV of prompts that begin alike.")
    prefix_cache_ram: Bytes | None = Field(
        None, description="Memory for reusable KV that the KV cache has no room for, e.g. 8GiB; none when absent."
    )
    prefix_cache_dir: Path | None = Field(
        None,
        description="Directory that keeps reusable KV over restarts; with --prefix-cache-disk alone it lies beside the "
        "pulled models.",
    )
    prefix_cache_disk: Bytes | None = Field(
        None, description="Most bytes in that directory, the least recently used go first; 8GiB when absent."
    )
    pipeline_depth: Literal[1, 2] | None = Field(
        None, description="Steps under way at once; when absent, 2 on a GPU and 1 on a CPU."
    )
    enforce_eager: bool = Field(
        False, description="Run every step op by op: no recorded steps on a CPU, no CUDA graphs."
    )
    draft: Literal["none", "lookup", "history"] = Field(
        "none",
        description="Guess tokens ahead and verify several in a step; no text changes. lookup: from the request's own "
        "text, and its prediction. history: from recent answers to the same key (or cache_salt), too.",
    )
    max_draft_tokens: Annotated[int, Field(ge=1, le=64)] = Field(8, description="Most guesses that a step verifies.")
    draft_ngram: Annotated[int, Field(ge=1, le=16)] = Field(
        3, description="Tokens that have to be the same for what followed them to be a guess."
    )
    trace_step: bool = Field(False, description="Log the plan of every step: slot, position, tokens, samples, blocks.")
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Ranks that share the model: each a process with a GPU of its own, or on the CPU."
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(0, description="Compute threads; 0: all cores.")
    integrity_checks: bool = Field(False, description="Check the KV allocator's books whenever the engine goes idle.")

    @field_validator("pipeline_depth", mode="before")
    @classmethod
    def _depth_from_text(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs ({self.max_num_seqs}) may not exceed max_num_batched_tokens "
                f"({self.max_num_batched_tokens}): every running sequence needs a token a step"
            )
        if self.max_adapters is not None and self.max_adapters < len(self.adapter):
            raise ValueError(f"max_adapters ({self.max_adapters}) is less than the {len(self.adapter)} of --adapter")
        tiers = [name for name in _TIERS if getattr(self, name) is not None]
        if tiers and not self.enable_prefix_caching:
            raise ValueError(f"{tiers[0]} is for the prefix cache, which enable_prefix_caching turns off")
        if tiers and self.tensor_parallel_size > 1:
            raise ValueError(
                f"{tiers[0]} is not served with tensor_parallel_size ({self.tensor_parallel_size}) above 1"
            )
        if self.max_num_seqs > self.max_logit_rows:
            raise ValueError(
                f"max_num_seqs ({self.max_num_seqs}) may not exceed max_logit_rows ({self.max_logit_rows})"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load() has already merged the sources, to know where each value came from.
        return (init_settings,)


ANY_NAME = "*"
"""Among served names, or allowed hosts: whatever name a client uses."""


def has_flag(field: FieldInfo) -> bool:
    """Whether every verb with settings takes it on its command line, which every user of the machine can read."""
    return field.json_schema_extra != NO_FLAG


def flag_name(field: str) -> str:
    """Command-line spelling of a setting."""
    if field == "api_keys":
        return "--api-key"  # one each time it is given
    return "--" + field.replace("_", "-")


def load(flags: Mapping[str, Any], config_file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """Merges all sources.

    Returns:
        The settings and, for each field, the source of its value: ``flag --x``, ``environment TUILI_X``,
        ``file PATH`` or ``default``.

    Raises:
        SettingsError: a value that does not validate, an unknown key in the file, an unreadable file.
    """
    path = config_file or (Path(os.environ["TUILI_CONFIG"]) if os.environ.get("TUILI_CONFIG") else None)
    layers: list[tuple[str, dict[str, Any]]] = [
        ("default", {}),
        (f"file {path}", _from_file(path) if path else {}),
        ("environment", EnvSettingsSource(Settings)()),
        ("flag", InitSettingsSource(Settings, init_kwargs=dict(flags))()),
    ]
    values: dict[str, Any] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    for source, layer in layers:
        for key, value in layer.items():
            values[key] = value
            if key in _EXCLUSIVE:
                _choose(key, layer, values, sources)
            suffix = {"flag": f" {flag_name(key)}", "environment": f" {ENV_PREFIX}{key.upper()}"}.get(source, "")
            sources[key] = source + suffix
    try:
        return Settings(**values), sources
    except ValidationError as e:
        raise SettingsError(_one_line(e, sources)) from None


_EXCLUSIVE = {"model": "models", "models": "model"}


def _choose(key: str, layer: Mapping[str, Any], values: dict[str, Any], sources: dict[str, str]) -> None:
    """Has one model, or several, replace what a weaker source says. Raises :class:`SettingsError`."""
    other = _EXCLUSIVE[key]
    if other in layer:
        raise SettingsError("model and models are both given: models names all that are served")
    values.pop(other, None)
    sources[other] = "default"


def unknown_environment() -> dict[str, str]:
    """``TUILI_*`` variables that are no setting, probably misspelt, each with what may have been meant."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | {"TUILI_CONFIG"}
    unknown = sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)
    return {name: did_you_mean(name, known) for name in unknown}


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SettingsError(f"settings file {path} does not exist")
    try:
        values = YamlConfigSettingsSource(Settings, yaml_file=path)()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as e:
        raise SettingsError(f"settings file {path}: {' '.join(str(e).split())}") from None
    except (TypeError, ValueError, AttributeError):  # the last for keys that are no strings, in some versions
        raise SettingsError(f"settings file {path}: not a mapping of settings to values") from None
    for key in values:
        if not isinstance(key, str):
            raise SettingsError(f"settings file {path}: not a mapping of settings to values")
    return values


def _one_line(error: ValidationError, sources: Mapping[str, str]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return message
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(name, Settings.model_fields)
        return f"unknown setting {name!r} ({sources.get(name, 'settings file')}){hint}"
    if not has_flag(Settings.model_fields[name]):
        return f"bad setting {name} ({sources[name]}): {message}"
    return f"bad setting {name} = {first['input']!r} ({sources.get(name, 'default')}): {message}"
