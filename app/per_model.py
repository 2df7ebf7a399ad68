"""Settings of each of the models that are served: the server's own, and over them what is said of that model."""

from __future__ import annotations

from pydantic import ValidationError

from app.setting_values import ModelEntry
from app.settings import ANY_NAME, Settings, SettingsError

OF_A_MODEL = frozenset({
    "model", "revision", "served_model_name", "keep_alive", "preload", "chat_template_name", "tool_format",
    "reasoning_format", "default_sampling", "load_format", "via", "dtype", "quantization", "kv_cache_dtype", "kernels",
    "device", "seed", "stall_timeout", "max_queue", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
    "max_logit_rows", "kv_cache_memory", "enable_prefix_caching", "prefix_cache_ram", "pipeline_depth",
    "enforce_eager", "draft", "max_draft_tokens", "draft_ngram", "trace_step", "tensor_parallel_size", "threads",
    "integrity_checks",
})  # fmt: skip
"""Settings that may differ between models."""
_OF_ONE = ("revision", "served_model_name")
"""Settings of these that are of one model alone."""


def per_model(settings: Settings) -> tuple[Settings, ...]:
    """The settings of each model, in their order; ``settings`` itself where there is but one.

    Raises:
        SettingsError: one of them cannot be used; the message names the model.
    """
    if not settings.models:
        return (settings,)
    for name in _OF_ONE:
        if getattr(settings, name):
            raise SettingsError(f"{name} is of one model: with several say it in the settings file, under models")
    made = tuple(_settings_of(settings, entry, index) for index, entry in enumerate(settings.models))
    for each in made[1:]:
        if ANY_NAME in each.served_model_name:
            raise SettingsError(f"models: only the first may take any name, not {each.model}")
    return made


def come_and_go(settings: Settings) -> bool:
    """Whether models are loaded as they are asked for, and unloaded: several, or one of which the settings say when."""
    if len(settings.models) > 1 or settings.model_memory is not None:
        return True
    return any(each.keep_alive is not None or each.preload is False for each in per_model(settings))


def _settings_of(settings: Settings, entry: ModelEntry, index: int) -> Settings:
    where = f"models[{index}]"
    name = entry.get("model")
    if not isinstance(name, str) or not name:
        raise SettingsError(f"{where}: model, the name of a model, is missing")
    for key in entry:
        if key not in OF_A_MODEL:
            known = "is a setting of the whole server" if key in Settings.model_fields else "is no setting"
            raise SettingsError(f"{where} ({name}): {key!r} {known}")
    shared = {key: getattr(settings, key) for key in OF_A_MODEL & settings.model_fields_set}
    try:
        own = Settings(**shared | entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f" {part}" for part in first["loc"][:1])
        raise SettingsError(
            f"{where} ({name}): bad setting{field}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    return settings.model_copy(update={key: getattr(own, key) for key in OF_A_MODEL})
