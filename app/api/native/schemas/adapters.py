"""``/v1/load_lora_adapter``, ``/v1/unload_lora_adapter``: what they take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.api.fields import Body

_Name = Annotated[str, Field(min_length=1, max_length=128)]
_Model = Annotated[
    Annotated[str, Field(max_length=1024)] | None,
    Field(description="Name of the served model that the adapter is for; the first one when absent."),
]


class LoadAdapterBody(Body):
    """An adapter to load."""

    lora_name: _Name = Field(description="Name by which requests will ask for it.")
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="Directory on the server with adapter_config.json and adapter_model.safetensors."
    )
    base_model_name: _Model = None


class UnloadAdapterBody(Body):
    """An adapter to unload."""

    lora_name: _Name = Field(description="Name by which requests ask for it.")
    base_model_name: _Model = None
