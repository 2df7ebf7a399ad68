"""The tokenizer that a GGUF file describes in its metadata, as a ``tokenizers.Tokenizer``.

The file names its pre-tokenizer instead of spelling it out, and a wrong one changes the token ids without any sign of
it. So only pre-tokenizers whose definition is known are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_SPACE = "▁"
"""SentencePiece's spelling of a space."""

_MAX_PIECE = 256
"""Characters of a SentencePiece token. Work and memory for its merges grow with the square; real ones have up to 64."""


_NO_TOKEN = (-1, 0xFFFFFFFF)
"""Ids that say that there is no such token: -1, signed or written as the metadata's usual uint32."""


class GGUFTokenizerError(ValueError):
    """Metadata from which no tokenizer can be made; the message is one line."""


class UnknownPreTokenizer(GGUFTokenizerError):  # noqa: N818 - says what is the matter
    """A byte-level BPE tokenizer whose pre-tokenizer is not known."""

    def __init__(self, name: str | None) -> None:
        what = "names no pre-tokenizer" if name is None else f"names the pre-tokenizer {name!r}, which is not known"
        super().__init__(f"the GGUF file {what}; known are {', '.join(sorted(_PRE_TOKENIZERS))}")


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Args:
        metadata: the file's keys with their values as plain Python objects; those under ``tokenizer.ggml.`` are read.

    Raises:
        UnknownPreTokenizer: byte-level BPE with a pre-tokenizer that is not known.
        GGUFTokenizerError: another kind of tokenizer, or one that is incomplete.
    """
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind = fields.get("model")
    build = {"gpt2": _build_byte_level, "llama": _build_sentencepiece}.get(str(kind))
    if build is None:
        raise GGUFTokenizerError(f"the GGUF file has a tokenizer of kind {kind!r}; known are 'gpt2' and 'llama'")
    tokens: list[str] = _required(fields, "tokens")
    types: list[int] = fields.get("token_type") or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise GGUFTokenizerError(f"the GGUF file has {len(tokens)} tokens but {len(types)} token types")
    return build(fields, tokens, types)


def special_token_id(value: object, name: str, num_tokens: int) -> int | None:
    """A special token's id as the metadata has it; None when there is no such token.

    Args:
        value: of ``tokenizer.ggml.<name>``; None when the file has none.

    Raises:
        GGUFTokenizerError: it is not in the vocabulary.
    """
    if value is None or value in _NO_TOKEN:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < num_tokens:
        raise GGUFTokenizerError(f"tokenizer.ggml.{name} = {value!r} is not in the vocabulary of {num_tokens} tokens")
    return value


def _required(fields: Mapping[str, Any], name: str) -> Any:
    try:
        return fields[name]
    except KeyError:
        raise GGUFTokenizerError(f"the GGUF file has no tokenizer.ggml.{name}") from None


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        vocab.setdefault(token, token_id)
    return vocab


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Declares the tokens that are matched as they stand: control tokens, and those the model's makers added."""
    kinds = list(zip(tokens, types, strict=True))
    control = [token for token, kind in kinds if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
    added = [token for token, kind in kinds if kind == TokenType.USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])


def _add_post_processor(
    tokenizer: Tokenizer, fields: Mapping[str, Any], tokens: Sequence[str], *, add_bos: bool
) -> None:
    """Adds BOS and EOS where the file says so; ``add_bos`` is what its silence means."""
    bos = _marker(fields, tokens, "bos", default=add_bos)
    eos = _marker(fields, tokens, "eos", default=False)
    if bos or eos:
        single = [*(token for token, _ in bos), "$A", *(token for token, _ in eos)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=bos + eos)


def _marker(fields: Mapping[str, Any], tokens: Sequence[str], name: str, *, default: bool) -> list[tuple[str, int]]:
    """The token that every text gets, if any; ``default`` is what the file's silence means."""
    added, key = fields.get(f"add_{name}_token"), f"{name}_token_id"
    if not (default if added is None else added):
        return []
    token_id = special_token_id(fields.get(key), key, len(tokens))
    if token_id is not None:
        return [(tokens[token_id], token_id)]
    if added or key not in fields:
        raise GGUFTokenizerError(f"the GGUF file has no tokenizer.ggml.{key}, which every text is to get")
    return []


# ---------------------------------------------------------------------------------------------------------------
# Byte-level BPE


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """How text is cut into words before merging."""

    pattern: str | None = None
    """Words; None for GPT-2's own pattern."""
    split_digits: bool = False
    nfc: bool = False
    """Compose characters first."""
    ignore_merges: bool = False
    """A word that is a token is that token, whatever the merges would give."""
    add_bos: bool = False
    """When the file does not say."""


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_MARKED_REST = _REST.replace(r"\p{L}\p{N}", r"\p{L}\p{M}\p{N}")
_QWEN35 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|{_MARKED_REST}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_GPT2 = _PreTokenizer()
_SPLIT_DIGITS = _PreTokenizer(split_digits=True)
_LLAMA_BPE = _PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True)

_PRE_TOKENIZERS: dict[str, _PreTokenizer] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _SPLIT_DIGITS,
    "starcoder": _SPLIT_DIGITS,
    "refact": _SPLIT_DIGITS,
    "command-r": _PreTokenizer(split_digits=True, nfc=True),
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "qwen2": _PreTokenizer(_QWEN2, nfc=True),
    "qwen35": _PreTokenizer(_QWEN35, nfc=True),
    "deepseek-r1-qwen": _PreTokenizer(_QWEN2),
    "tekken": _PreTokenizer(_TEKKEN, ignore_merges=True, add_bos=True),
}
"""By ``tokenizer.ggml.pre``."""


def _build_byte_level(fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    name = fields.get("pre")
    pre = _PRE_TOKENIZERS.get(str(name))
    if pre is None:
        raise UnknownPreTokenizer(name)
    merges = [_merge(line, index) for index, line in enumerate(_required(fields, "merges"))]
    try:
        model = models.BPE(vocab=_vocabulary(tokens), merges=merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the library raises bare Exception
        raise GGUFTokenizerError(f"the GGUF file's merges do not fit its tokens: {error}") from error
    tokenizer = Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, types)
    _add_post_processor(tokenizer, fields, tokens, add_bos=pre.add_bos)
    return tokenizer


def _merge(line: str, index: int) -> tuple[str, str]:
    # Skips the first character: some files have tokens that begin with a plain space.
    split = line.find(" ", 1)
    if split < 0 or split == len(line) - 1:
        raise GGUFTokenizerError(f"the GGUF file's merge {index} is {line[:40]!r}, not two tokens with a space between")
    return line[:split], line[split + 1 :]


def _pre_tokenizer(pre: _PreTokenizer) -> pre_tokenizers.PreTokenizer:
    steps: list[pre_tokenizers.PreTokenizer] = []
    if pre.split_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.pattern is None))
    return pre_tokenizers.Sequence(steps)


# ---------------------------------------------------------------------------------------------------------------
# SentencePiece BPE with byte fallback


def _build_sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    scores: list[float] = _required(fields, "scores")
    if len(scores) != len(tokens):
        raise GGUFTokenizerError(f"the GGUF file has {len(tokens)} tokens but {len(scores)} scores")
    vocab = _vocabulary(tokens)
    unknown = special_token_id(fields.get("unknown_token_id", 0), "unknown_token_id", len(tokens))
    mergeable = {
        token: token_id
        for token, token_id in vocab.items()
        if types[token_id] in (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    }
    longest = max(mergeable, key=len, default="")
    if len(longest) > _MAX_PIECE:
        what = f"token {vocab[longest]} is {len(longest)} characters long"
        raise GGUFTokenizerError(f"the GGUF file's {what}, at most {_MAX_PIECE} are supported")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_by_score(mergeable, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    add_space = bool(fields.get("add_space_prefix", True))
    to_underscore = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), to_underscore]) if add_space else to_underscore
    )
    steps: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if add_space:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    # Runs of spaces declared as added tokens are spelt as no text is before normalisation; the merges make them.
    in_text = [
        TokenType.NORMAL if kind == TokenType.USER_DEFINED and _SPACE in token else kind
        for token, kind in zip(tokens, types, strict=True)
    ]
    _add_tokens(tokenizer, tokens, in_text)
    _add_post_processor(tokenizer, fields, tokens, add_bos=True)
    return tokenizer


def _merges_by_score(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose result scores best; BPE wants the pairs in that order.

    Every way to cut a token into two tokens is a pair. Of those with equal scores, the one with the longest left half
    comes first, then the one that stands first in the vocabulary.
    """
    pairs = [
        (-scores[token_id], -cut, token_id, (token[:cut], token[cut:]))
        for token, token_id in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return [pair for *_, pair in sorted(pairs)]
