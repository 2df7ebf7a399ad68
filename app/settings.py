"""Every setting there is, in one frozen tree.

A value comes from, strongest first: command-line flag, environment variable (``TUILI_<NAME>``), YAML file
(``--config`` or ``TUILI_CONFIG``), default. ``tuili config`` prints each value and where it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)
from pydantic_settings.sources import NoDecode

from app.contract.config import ADAPTER_NAME
from app.contract.request import DEFAULT_SAMPLING
from app.duration import read_duration
from app.keys import ApiKey, parse_keys
from app.nearest import did_you_mean
from app.quant.formats import QUANTIZATIONS

ENV_PREFIX = "TUILI_"
NO_FLAG: dict[str, Any] = {"flag": False}
"""Marks a secret: it is never shown, and an option of `tuili serve` alone."""
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9.-]+(:\d+)?|[a-z][a-z0-9+.-]*://\[[0-9A-Fa-f:]+\](:\d+)?")
_HOST = re.compile(r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SAMPLING: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "top_k": (0, 1 << 30),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
}
"""Fields that a model may recommend, and their bounds."""
# Nothing is sensible beyond these bounds: a slip of the finger should be told, not allocated.
Count = Annotated[int, Field(ge=1, lt=1 << 31)]
BatchSize = Annotated[int, Field(ge=1, le=1 << 18)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Bytes = Annotated[ByteSize, Field(gt=0, lt=1 << 60)]


def _named_alone(given: Any) -> Any:
    return {"model": given} if isinstance(given, str) else given


ModelEntry = Annotated[dict[str, Any], BeforeValidator(_named_alone)]
"""One of several models: its name, or that and settings of its own."""


def _read_duration(given: Any) -> Any:
    return read_duration(given) if isinstance(given, str | float | int) and not isinstance(given, bool) else given


Duration = Annotated[float, BeforeValidator(_read_duration)]


def _one_of_the_formats(value: str) -> str:
    if value not in QUANTIZATIONS:
        raise ValueError(f"use one of {', '.join(QUANTIZATIONS)}")
    return value


Quantization = Annotated[str, AfterValidator(_one_of_the_formats)]
"""Asks for one of :class:`app.quant.formats.WeightFormat`."""


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line that names it, its source and what is wrong."""


class Settings(BaseSettings):
    """What ``tuili serve`` can be told."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    # Model
    model: str = Field("smollm2-135m", min_length=1, description="Built-in name, directory, .gguf file or hub id.")
    models: Annotated[tuple[ModelEntry, ...], NoDecode] = Field(
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
    served_model_name: Annotated[tuple[str, ...], NoDecode] = Field(
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
    default_sampling: Annotated[dict[str, int | float], NoDecode] = Field(
        DEFAULT_SAMPLING,
        description="How a model samples by default that recommends nothing itself (generation_config.json, GGUF), "
        "e.g. temperature=0.7,top_p=0.9; none: at temperature 1.",
    )
    adapter: Annotated[tuple[str, ...], NoDecode] = Field(
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
        "activations too, int8_weight_only (GPUs) does not.",
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
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        (),
        description="Keys that clients need, comma-separated: KEY, or NAME:SCOPE+SCOPE:KEY (infer, metrics, admin).",
        json_schema_extra=NO_FLAG,
    )
    api_key_file: Path | None = Field(None, description="File of hashed keys, as `tuili keys new` prints them.")
    insecure: bool = Field(False, description="Listen beyond this machine even though no key is needed.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origin(s) whose pages may read answers in a browser, e.g. https://a.example. May repeat."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
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

    @field_validator("models", "served_model_name", "cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return _split(value)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("an origin is SCHEME://HOST[:PORT] and nothing behind it, or *")
        return value

    @field_validator("adapter", mode="before")
    @classmethod
    def _adapters_of_a_file(cls, value: Any) -> Any:
        return tuple(f"{name}={path}" for name, path in value.items()) if isinstance(value, dict) else _split(value)

    @field_validator("adapter")
    @classmethod
    def _adapters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [entry.partition("=")[0] for entry in value]
        for entry, name in zip(value, names, strict=True):
            if not entry.partition("=")[2] or not re.fullmatch(ADAPTER_NAME, name):
                raise ValueError("an adapter is NAME=PATH, the name of letters, digits and any of . _ - / : @ +")
        if len(set(names)) < len(names):
            raise ValueError("two adapters have the same name")
        return value

    @field_validator("default_sampling", mode="before")
    @classmethod
    def _sampling_from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = () if value == "none" else _split(value)
        return {name.strip(): _number(text) for name, _, text in (pair.partition("=") for pair in pairs)}

    @field_validator("default_sampling")
    @classmethod
    def _sampling(cls, value: dict[str, int | float]) -> dict[str, int | float]:
        for name, number in value.items():
            if name not in _SAMPLING:
                raise ValueError(f"{name or 'nothing'} is not one of {', '.join(_SAMPLING)}")
            low, high = _SAMPLING[name]
            if not low <= number <= high:
                raise ValueError(f"{name} is from {low:g} to {high:g}")
            if name == "top_k" and not isinstance(number, int):
                raise ValueError("top_k is a whole number")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError("a host is a name without scheme and port, or *")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_keys(cls, value: Any) -> Any:
        entries = _split(value)
        if not isinstance(entries, tuple | list) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError("keys are texts")  # not shown: what is no text may still hold a key
        return parse_keys(entries)

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


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


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
