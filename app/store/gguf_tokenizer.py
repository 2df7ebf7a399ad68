"""The tokenizer that a GGUF file describes in its metadata, as a ``tokenizers.Tokenizer``.

The file names its pre-tokenizer instead of spelling it out, and a wrong one changes the token ids without any sign of
it. So only pre-tokenizers whose definition is known are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from app.store.gguf_pre_tokenizers import PRE_TOKENIZERS

_SPACE = "▁"
"""SentencePiece's spelling of a space."""

_MAX_PIECE = 256
"""Characters of a SentencePiece token. Work and memory for its merges grow with the square; real ones have up to 64."""


_KINDS = ("gpt2", "llama", "gemma4")
"""Byte-level BPE; SentencePiece, by scores; the same vocabulary by merges."""
_NO_TOKEN = (-1, 0xFFFFFFFF)
"""Ids that say that there is no such token: -1, signed or written as the metadata's usual uint32."""


class GGUFTokenizerError(ValueError):
    """Metadata from which no tokenizer can be made; the message is one line."""


class UnknownPreTokenizer(GGUFTokenizerError):  # noqa: N818 - says what is the matter
    """A byte-level BPE tokenizer whose pre-tokenizer is not known."""

    def __init__(self, name: str | None) -> None:
        what = "names no pre-tokenizer" if name is None else f"names the pre-tokenizer {name!r}, which is not known"
        super().__init__(f"the GGUF file {what}; known are {', '.join(sorted(PRE_TOKENIZERS))}")


def build_tokenizer(metadata: Mapping[str, Any], *, before_space: Sequence[str] | None = None) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Args:
        metadata: the file's keys with their values as plain Python objects; those under ``tokenizer.ggml.`` are read.
        before_space: see :attr:`app.models.names.FamilyNames.gguf_tokens_before_space`.

    Raises:
        UnknownPreTokenizer: byte-level BPE with a pre-tokenizer that is not known.
        GGUFTokenizerError: another kind of tokenizer, or one that is incomplete.
    """
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind = fields.get("model")
    if kind not in _KINDS:
        known = ", ".join(map(repr, _KINDS))
        raise GGUFTokenizerError(f"the GGUF file has a tokenizer of kind {kind!r}; known are {known}")
    tokens: list[str] = _required(fields, "tokens")
    types: list[int] = fields.get("token_type") or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise GGUFTokenizerError(f"the GGUF file has {len(tokens)} tokens but {len(types)} token types")
    if kind == "gpt2":
        return _build_byte_level(fields, tokens, types)
    make_model = _merged_model if kind == "gemma4" else _scored_model
    return _build_sentencepiece(fields, tokens, types, before_space, make_model)


def special_token_id(value: object, name: str, num_tokens: int) -> int | None:
    """A special token's id as the metadata has it; None when there is no such token.

    Args:
        value: value of ``tokenizer.ggml.<name>``; None when the file has none.

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


def _add_tokens(
    tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int], before_space: Sequence[str] | None = None
) -> None:
    """Declares the tokens that are matched as they stand: control tokens, and those the model's makers added."""
    kinds = list(zip(tokens, types, strict=True))
    control = [token for token, kind in kinds if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
    added = [token for token, kind in kinds if kind == TokenType.USER_DEFINED]
    swallowing = set[str]() if before_space is None else set(control) - set(before_space)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True, rstrip=token in swallowing) for token in control]
    )
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


def _build_byte_level(fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    name = fields.get("pre")
    pre = PRE_TOKENIZERS.get(str(name))
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
    tokenizer.pre_tokenizer = pre.build()
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


# ---------------------------------------------------------------------------------------------------------------
# SentencePiece BPE with byte fallback


def _scored_model(fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> models.BPE:
    scores: list[float] = _required(fields, "scores")
    if len(scores) != len(tokens):
        raise GGUFTokenizerError(f"the GGUF file has {len(tokens)} tokens but {len(scores)} scores")
    vocab = _vocabulary(tokens)
    mergeable = {
        token: token_id
        for token, token_id in vocab.items()
        if types[token_id] in (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    }
    longest = max(mergeable, key=len, default="")
    if len(longest) > _MAX_PIECE:
        what = f"token {vocab[longest]} is {len(longest)} characters long"
        raise GGUFTokenizerError(f"the GGUF file's {what}, at most {_MAX_PIECE} are supported")
    return _fallback_model(fields, tokens, _merges_by_score(mergeable, scores))


def _merged_model(fields: Mapping[str, Any], tokens: Sequence[str], _types: Sequence[int]) -> models.BPE:
    merges = [_merge(line, index) for index, line in enumerate(_required(fields, "merges"))]
    return _fallback_model(fields, tokens, merges)


def _fallback_model(fields: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> models.BPE:
    unknown = special_token_id(fields.get("unknown_token_id", 0), "unknown_token_id", len(tokens))
    try:
        return models.BPE(
            vocab=_vocabulary(tokens),
            merges=list(merges),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    except Exception as error:  # the library raises bare Exception
        raise GGUFTokenizerError(f"the GGUF file's merges do not fit its tokens: {error}") from error


def _build_sentencepiece(
    fields: Mapping[str, Any],
    tokens: Sequence[str],
    types: Sequence[int],
    before_space: Sequence[str] | None,
    make_model: Callable[[Mapping[str, Any], Sequence[str], Sequence[int]], models.BPE],
) -> Tokenizer:
    tokenizer = Tokenizer(make_model(fields, tokens, types))
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
    _add_tokens(tokenizer, tokens, in_text, before_space)
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
