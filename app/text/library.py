"""The two tokenizers that the ``tokenizers`` library makes of one definition: only one of them reads control tokens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import msgspec
import tokenizers
from msgspec.structs import replace
from tokenizers import normalizers

from app.store.special_tokens import AddedToken, DeclaredTokens
from app.text.breaks import BREAK
from app.text.infill_formats import INFILL_TOKENS
from app.text.token_bytes import TokenizerError


class LibraryTokenizers(NamedTuple):
    """The library's tokenizers of one definition, and what both have in common."""

    plain: tokenizers.Tokenizer
    """Encodes control tokens in a text as ordinary text."""
    parsing: tokenizers.Tokenizer
    """Reads control tokens in a text, before normalisation and not across a break (:mod:`app.text.breaks`)."""
    control_ids: frozenset[int]
    """Ids of the control tokens."""
    decoder: dict[str, Any] | None
    """The definition's ``decoder``, as JSON."""
    prefix: list[int]
    """Ids that the definition adds before a text. The two tokenizers do not add them themselves."""
    suffix: list[int]
    """Ids that the definition adds after a text. The two tokenizers do not add them themselves."""


def load_library(definition: str, declared: DeclaredTokens) -> LibraryTokenizers:
    """Loads a definition into the library.

    Args:
        definition: contents of a ``tokenizer.json``.
        declared: the tokens that other files than ``tokenizer.json`` declare.

    Raises:
        TokenizerError: the definition is not usable.
    """
    plain = _parse(definition)
    tree = json.loads(definition)
    if declared.replaces:
        tree["added_tokens"] = []
        definition = json.dumps(tree, ensure_ascii=False)
        plain = _parse(definition)
    added = plain.get_added_tokens_decoder()
    # The library leaves out what was once added as a control token, whatever is added under that name later.
    control = {token.content for token in added.values() if token.special}
    control.update(token.content for token in declared.added if token.special)
    _add(plain, declared.added)
    plain.encode_special_tokens = True
    broken = control | INFILL_TOKENS
    parsing = _parse(_with_raw_specials(definition, tree, broken))
    raw = [replace(token, normalized=False) if token.content in broken else token for token in declared.added]
    _add(parsing, raw)
    # Control tokens are looked for before normalisation, so a break is seen by that search and by nothing else.
    remove_breaks = normalizers.Replace(BREAK, "")
    normalizer = parsing.normalizer
    parsing.normalizer = normalizers.Sequence([remove_breaks, normalizer]) if normalizer else remove_breaks

    added = plain.get_added_tokens_decoder()
    control_ids = frozenset(token_id for token_id, token in added.items() if token.content in control)
    prefix, suffix = _added_ids(plain)
    # What is added depends on the text (Tokenizer.encode), and byte-level post-processors take spaces off the offsets.
    plain.post_processor = parsing.post_processor = None
    return LibraryTokenizers(plain, parsing, control_ids, tree.get("decoder"), prefix, suffix)


def _added_ids(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that a tokenizer's post-processor adds before and after a text.

    Raises:
        TokenizerError: the tokenizer cannot encode a letter.
    """
    try:
        probe = tokenizer.encode("a")
    except Exception as error:  # as in _parse
        raise TokenizerError(f"not a usable tokenizer definition: {error}") from error
    added = probe.special_tokens_mask
    num_before = len(list(itertools.takewhile(bool, added)))
    num_after = len(list(itertools.takewhile(bool, reversed(added[num_before:]))))
    return probe.ids[:num_before], probe.ids[len(added) - num_after :]


def _parse(definition: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"not a tokenizer definition: {error}") from error
    # Some files carry the settings of a training run; they would cut prompts silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _add(tokenizer: tokenizers.Tokenizer, tokens: Iterable[AddedToken]) -> None:
    tokenizer.add_tokens([tokenizers.AddedToken(**msgspec.structs.asdict(token)) for token in tokens])


def _with_raw_specials(definition: str, tree: dict[str, Any], broken: Container[str]) -> str:
    """The definition with tokens that breaks may guard against matched in the text as it stands.

    Normalisation removes the breaks, so a search after it would find these tokens nevertheless.
    """
    normalized = [token for token in tree.get("added_tokens", []) if token["content"] in broken and token["normalized"]]
    for token in normalized:
        token["normalized"] = False
    return json.dumps(tree, ensure_ascii=False) if normalized else definition
