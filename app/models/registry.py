"""Which class serves which architecture."""

from __future__ import annotations

from app.models.config import unsupported_architecture
from app.models.llama import LlamaForCausalLM

_MODELS = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": LlamaForCausalLM,
    "MinistralForCausalLM": LlamaForCausalLM,
    "Qwen2ForCausalLM": LlamaForCausalLM,
    "Qwen3ForCausalLM": LlamaForCausalLM,
}


def model_class(architecture: str) -> type[LlamaForCausalLM]:
    """The class for a name of config.json's ``architectures``.

    Raises:
        ConfigError: nobody serves it; the message lists those that are served.
    """
    try:
        return _MODELS[architecture]
    except KeyError:
        raise unsupported_architecture(architecture) from None
