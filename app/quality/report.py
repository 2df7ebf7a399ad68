"""Compares number formats of one model against fp32."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.llm import LLM, EngineOptions
from app.quality.measure import WINDOW, Score, score
from app.quality.texts import SHA256, read_text
from app.serving.engine_client import EngineFailedError
from app.store import ModelFiles
from app.text.tokenizer import Tokenizer

REFERENCE = "float32"
FORMATS: dict[str, EngineOptions] = {
    REFERENCE: {"dtype": "float32", "quantization": "none", "kv_cache_dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16", "quantization": "none", "kv_cache_dtype": "bfloat16"},
    "int8 + bf16 KV": {"dtype": "float32", "quantization": "int8", "kv_cache_dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantization": "int8", "kv_cache_dtype": "int8"},
}
_LIMITS: EngineOptions = {"max_num_seqs": 4, "max_num_batched_tokens": 1024, "enable_prefix_caching": False}


@dataclass(frozen=True, slots=True)
class Row:
    """One number format, measured on one text."""

    weights: str
    language: str
    num_tokens: int
    perplexity: float
    ratio: float
    """Perplexity over that of fp32."""
    agreement: float
    """Share of positions with fp32's most likely token."""
    seconds: float

    def fields(self) -> dict[str, object]:
        """Fields of the row, for a line of JSON."""
        return {
            "format": self.weights,
            "language": self.language,
            "sha256": SHA256[self.language],
            "tokens": self.num_tokens,
            "window": WINDOW,
            "perplexity": round(self.perplexity, 4),
            "perplexity_ratio": round(self.ratio, 5),
            "top1_agreement": round(self.agreement, 5),
            "seconds": round(self.seconds, 2),
        }


def compare(
    files: ModelFiles,
    *,
    quantized: ModelFiles | None = None,
    home: Path | None = None,
    formats: Mapping[str, EngineOptions] = FORMATS,
    max_tokens: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Measures each format on each text, fp32 first. A format that the model cannot have is announced and left out.

    Args:
        quantized: an int8 checkpoint of the model, taken for the int8 formats.
        max_tokens: tokens of each text that are read; all when absent.
        announce: called with what is measured next.
    """
    tokenizer = Tokenizer.load(files.tokenizer_file)
    texts = {language: tokenizer.encode(read_text(language))[:max_tokens] for language in SHA256}
    reference: dict[str, Score] = {}
    for name, options in formats.items():
        chosen = quantized if quantized is not None and options.get("quantization") == "int8" else files
        announce(name)
        try:
            llm = LLM(chosen, home=home, **(_LIMITS | options))
        except EngineFailedError as error:
            if not reference:
                raise
            announce(f"{name} is left out: {error}")
            continue
        with llm:
            for language, token_ids in texts.items():
                began = time.monotonic()
                result = score(llm, token_ids)
                seconds = time.monotonic() - began
                base = reference.setdefault(language, result)
                yield Row(
                    name,
                    language,
                    result.num_tokens,
                    result.perplexity,
                    result.perplexity / base.perplexity,
                    result.agreement(base),
                    seconds,
                )
