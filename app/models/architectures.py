"""The architectures that are served, a row for each family; a family's modules are imported when it is asked for.

A family is a package of three modules: ``config`` reads its ``config.json``, ``names`` knows what its files call
tensors and metadata (both without torch), ``model`` builds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from app.models.architecture import Architecture
from app.models.config_fields import ConfigError, shown
from app.models.quantization import fp8_scales

if TYPE_CHECKING:
    from app.models.config import ModelConfig

MAX_NAME = 64
"""Characters of an unknown name that are compared with the names that are served."""
VIA = "; --via transformers serves, slowly, what transformers has"
"""What the error of an unknown model says that can be done with it."""
ARCHITECTURES = (
    Architecture(
        title="Llama",
        examples="Llama 2, 3.1 and 3.2, SmolLM2",
        module="app.models.llama",
        hf=("LlamaForCausalLM",),
        gguf=("llama",),
        tested="trained",
    ),
    # transformers makes the second of a Mistral with layer_types.
    Architecture(
        title="Mistral",
        examples="Mistral 7B",
        module="app.models.mistral",
        hf=("MistralForCausalLM", "MinistralForCausalLM"),
        gguf_as=("llama",),
    ),
    Architecture(
        title="Mixtral",
        examples="Mixtral 8x7B",
        module="app.models.mixtral",
        hf=("MixtralForCausalLM",),
        gguf_as=("llama",),
    ),
    Architecture(
        title="Qwen2",
        examples="Qwen2, Qwen2.5",
        module="app.models.qwen2",
        hf=("Qwen2ForCausalLM",),
        gguf=("qwen2",),
        tokenizer="Qwen2Tokenizer",
    ),
    Architecture(
        title="Qwen3",
        examples="Qwen3 0.6B to 32B",
        module="app.models.qwen3",
        hf=("Qwen3ForCausalLM",),
        gguf=("qwen3",),
        tokenizer="Qwen2Tokenizer",
    ),
    Architecture(
        title="OLMoE", examples="OLMoE 1B-7B", module="app.models.olmoe", hf=("OlmoeForCausalLM",), gguf=("olmoe",)
    ),
    Architecture(
        title="Granite MoE",
        examples="Granite 3 1B-A400M and 3B-A800M",
        module="app.models.granitemoe",
        hf=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
        gguf=("granitemoe",),
    ),
    Architecture(
        title="Granite 4",
        examples="Granite 4 350M to 32B-A9B, H and not",
        module="app.models.granitemoehybrid",
        hf=("GraniteMoeHybridForCausalLM",),
        gguf=("granitehybrid",),
    ),
    Architecture(
        title="Falcon-H1",
        examples="Falcon-H1 0.5B to 34B",
        module="app.models.falcon_h1",
        hf=("FalconH1ForCausalLM",),
        gguf=("falcon-h1",),
    ),
    Architecture(
        title="ERNIE 4.5 MoE",
        examples="ERNIE 4.5 21B-A3B",
        module="app.models.ernie4_5_moe",
        hf=("Ernie4_5_MoeForCausalLM",),
        gguf=("ernie4_5-moe",),
    ),
    Architecture(
        title="Qwen2-MoE",
        examples="Qwen1.5-MoE-A2.7B, Qwen2 57B-A14B",
        module="app.models.qwen2moe",
        hf=("Qwen2MoeForCausalLM",),
        gguf=("qwen2moe",),
        tokenizer="Qwen2Tokenizer",
    ),
    Architecture(
        title="Qwen3-MoE",
        examples="Qwen3 30B-A3B",
        module="app.models.qwen3moe",
        hf=("Qwen3MoeForCausalLM",),
        gguf=("qwen3moe",),
        tokenizer="Qwen2Tokenizer",
    ),
    # Qwen3.5 has a tokenizer class of its own, which brings the same tokens.
    Architecture(
        title="Qwen3-Next, Qwen3.5",
        examples="Qwen3-Next 80B-A3B, Qwen3.5",
        module="app.models.qwen3_next",
        hf=(
            "Qwen3NextForCausalLM",
            "Qwen3_5ForCausalLM",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForCausalLM",
            "Qwen3_5MoeForConditionalGeneration",
        ),
        gguf=("qwen35", "qwen35moe", "qwen3next"),
        tokenizer="Qwen2Tokenizer",
    ),
    Architecture(
        title="DeepSeek",
        examples="DeepSeek V2, V2-Lite, V3",
        module="app.models.deepseek",
        hf=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
        gguf=("deepseek2",),
    ),
    Architecture(
        title="MiniCPM3",
        examples="MiniCPM3 4B",
        module="app.models.minicpm3",
        hf=("MiniCPM3ForCausalLM",),
        gguf=("minicpm3",),
    ),
    Architecture(
        title="GPT-2",
        examples="GPT-2, DistilGPT2",
        module="app.models.gpt2",
        hf=("GPT2LMHeadModel",),
        gguf=("gpt2",),
        tokenizer="GPT2Tokenizer",
    ),
    Architecture(
        title="gpt-oss",
        examples="gpt-oss 20B and 120B",
        module="app.models.gpt_oss",
        hf=("GptOssForCausalLM",),
        gguf=("gpt-oss",),
    ),
    Architecture(
        title="Gemma 2",
        examples="Gemma 2 2B to 27B",
        module="app.models.gemma2",
        hf=("Gemma2ForCausalLM",),
        gguf=("gemma2",),
        tokenizer="GemmaTokenizer",
    ),
    Architecture(
        title="GPT-NeoX", examples="Pythia", module="app.models.gpt_neox", hf=("GPTNeoXForCausalLM",), gguf=("gptneox",)
    ),
    Architecture(
        title="StarCoder2",
        examples="StarCoder2 3B to 15B",
        module="app.models.starcoder2",
        hf=("Starcoder2ForCausalLM",),
        gguf=("starcoder2",),
        tokenizer="GPT2Tokenizer",
    ),
    Architecture(
        title="Phi-3",
        examples="Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
        module="app.models.phi3",
        hf=("Phi3ForCausalLM",),
        gguf=("phi3",),
    ),
    Architecture(
        title="Cohere",
        examples="Command R, Command R7B, Aya",
        module="app.models.cohere2",
        hf=("CohereForCausalLM", "Cohere2ForCausalLM"),
        gguf=("command-r", "cohere2"),
    ),
    # The second sees images too, but for its text part.
    Architecture(
        title="Gemma 3",
        examples="Gemma 3 270M to 27B",
        module="app.models.gemma3",
        hf=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        gguf=("gemma3",),
        tokenizer="GemmaTokenizer",
        tested="trained",
    ),
    Architecture(
        title="Gemma 4",
        examples="Gemma 4 E2B, E4B, 31B, 26B-A4B",
        module="app.models.gemma4",
        hf=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
        gguf=("gemma4",),
        tokenizer="GemmaTokenizer",
    ),
    Architecture(
        title="SmolLM3",
        examples="SmolLM3 3B",
        module="app.models.smollm3",
        hf=("SmolLM3ForCausalLM",),
        gguf=("smollm3",),
    ),
    Architecture(
        title="Granite",
        examples="Granite 3 2B and 8B",
        module="app.models.granite",
        hf=("GraniteForCausalLM",),
        gguf=("granite",),
    ),
    Architecture(
        title="OLMo",
        examples="OLMo 2, OLMo 3",
        module="app.models.olmo2",
        hf=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
        gguf=("olmo2",),
    ),
    Architecture(
        title="EXAONE 4",
        examples="EXAONE 4 1.2B and 32B",
        module="app.models.exaone4",
        hf=("Exaone4ForCausalLM",),
        gguf=("exaone4",),
    ),
    Architecture(
        title="GLM-4",
        examples="GLM-4 9B and 32B",
        module="app.models.glm4",
        hf=("Glm4ForCausalLM", "GlmForCausalLM"),
        gguf=("glm4",),
    ),
    Architecture(
        title="ERNIE 4.5",
        examples="ERNIE 4.5 0.3B",
        module="app.models.ernie4_5",
        hf=("Ernie4_5ForCausalLM",),
        gguf=("ernie4_5",),
    ),
    # The last sees images too, but for its text part, which may be either of the others.
    Architecture(
        title="LFM2",
        examples="LFM2 350M to 2.6B, LFM2 8B-A1B",
        module="app.models.lfm2",
        hf=("Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Lfm2VlForConditionalGeneration"),
        gguf=("lfm2", "lfm2moe"),
    ),
    # The second sees images too, but for its text part, which may be a Mistral.
    Architecture(
        title="Ministral 3",
        examples="Ministral 3 3B to 14B",
        module="app.models.ministral3",
        hf=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
        gguf=("mistral3",),
    ),
)


def find(architecture: str) -> Architecture:
    """The row of a name of ``config.json``'s ``architectures``.

    Raises:
        ConfigError: it is not served; the message names the nearest that is.
    """
    for row in ARCHITECTURES:
        if architecture in row.hf:
            return row
    served = {name: row for row in ARCHITECTURES for name in row.hf}
    raise _not_served("architectures =", architecture, served, VIA)


def find_gguf(architecture: str) -> Architecture:
    """The row of a GGUF file's ``general.architecture``.

    Raises:
        ConfigError: no such files are read; the message names the nearest that are.
    """
    for row in ARCHITECTURES:
        if architecture in row.gguf:
            return row
    raise _not_served("architecture", architecture, {name: row for row in ARCHITECTURES for name in row.gguf})


def _not_served(field: str, asked: str, served: dict[str, Architecture], otherwise: str = "") -> ConfigError:
    """The error of a name that no row has; it ends in what else can be done.

    Names are compared without what most of them end in, by which all would be near.
    """
    stems = {_stem(name): name for name in reversed(served)}  # of equal stems the first name
    near = get_close_matches(_stem(asked[:MAX_NAME]), stems, n=1)
    nearest = f"the nearest that is served is {stems[near[0]]} ({served[stems[near[0]]].title}); " if near else ""
    return ConfigError(
        f"{field} {shown(asked)} is not supported; {nearest}`tuili models` lists all that are{otherwise}"
    )


def _stem(name: str) -> str:
    """A name in lower case, without the kind of its model."""
    return re.sub("(for[a-z]*|lmheadmodel|model)$", "", name.lower())


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Reads a Hugging Face style ``config.json``.

    Raises:
        ConfigError: unknown architecture, missing or malformed field, or a setting that is not supported.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures = {names!r} names no model class")
    served = {name for row in ARCHITECTURES for name in row.hf}
    architecture = next((name for name in names if name in served), names[0])
    model = find(architecture).read(architecture, config)
    return replace(model, fp8=fp8_scales(config))
