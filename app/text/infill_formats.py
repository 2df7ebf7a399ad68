"""Families of models that were trained to fill in the middle: a row each, with the tokens that ask for it."""

from __future__ import annotations

from typing import NamedTuple


class InfillFormat(NamedTuple):
    """How a family of models is asked for the text between two others."""

    models: str
    """Models that were trained so."""
    prefix: str
    """Token before the text that comes first."""
    suffix: str
    """Token before the text that comes last."""
    middle: str | None
    """Token behind both; None where the first text is the last thing that the model reads."""
    suffix_first: bool = False
    """The model reads the last text before the first one."""
    ends: tuple[str, ...] = ()
    """Tokens that end what is filled in, besides the model's own end of text."""


FORMATS = (
    InfillFormat(
        "Qwen2.5-Coder, Qwen3-Coder, CodeGemma, Granite 4",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ends=("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    InfillFormat(
        "StarCoder, StarCoder2, Granite Code, Stable Code",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ends=("<|endoftext|>", "<fim_pad>", "<repo_name>", "<file_sep>"),
    ),
    InfillFormat("SantaCoder", "<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<|endoftext|>", "<fim-pad>")),
    InfillFormat("Code Llama", "▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",)),
    InfillFormat(
        "DeepSeek-Coder, DeepSeek-Coder-V2",
        "<｜fim▁begin｜>",
        "<｜fim▁hole｜>",
        "<｜fim▁end｜>",
        ends=("<|EOT|>",),
    ),
    InfillFormat("Codestral", "[PREFIX]", "[SUFFIX]", None, suffix_first=True),
    InfillFormat("Seed-Coder", "<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", suffix_first=True),
)
"""Told apart by their tokens alone, so no two rows have the same ones."""

INFILL_TOKENS = frozenset(
    token for row in FORMATS for token in (row.prefix, row.suffix, row.middle) if token is not None
)
"""Tokens that ask for a text in between."""
NAMES = ("prefix_token", "suffix_token", "middle_token")
"""Names under which a model's files may say what its own tokens are."""


def named_format(prefix: str, suffix: str, middle: str | None) -> InfillFormat:
    """The format of a model whose files name its tokens: the row that has them, or the order that most models have."""
    for row in FORMATS:
        if (row.prefix, row.suffix) == (prefix, suffix):
            return row
    return InfillFormat("", prefix, suffix, middle)
