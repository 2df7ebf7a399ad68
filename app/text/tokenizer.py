"""Text to token ids and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar, Unpack

import tokenizers

from app.contract.frames import Vocabulary
from app.errors import RequestError, TooManyTokensError
from app.store.errors import StoreError
from app.store.files import read_declared_tokens
from app.store.special_tokens import DeclaredTokens
from app.text.breaks import broken, offsets_without_breaks, within
from app.text.control_tokens import ControlTokens
from app.text.library import load_library
from app.text.long_text import exceeds, last_part, most_characters
from app.text.long_work import LongWork
from app.text.token_bytes import TokenBytes, TokenizerError, build_token_bytes

__all__ = ["EncodeOptions", "EncodedText", "TextOptions", "Tokenizer", "TokenizerError"]

_T = TypeVar("_T")

THREAD_THRESHOLD = 4_000
"""Characters, or tokens, from which work on them leaves the event loop: about a millisecond of it."""


class TextOptions(TypedDict, total=False):
    """Arguments of :meth:`Tokenizer.encode_with_offsets`."""

    add_special_tokens: bool
    parse_special: bool
    breaks: Sequence[int]
    max_tokens: int | None


class EncodeOptions(TextOptions, total=False):
    """Arguments of :meth:`Tokenizer.encode`."""

    keep_last: int | None


class EncodedText(NamedTuple):
    """Token ids of a text, and where in it each of them begins."""

    token_ids: list[int]
    offsets: list[int]
    """Where each token begins, in characters of the text as given. Tokens that share a character share its offset.
    Tokens that were added to the text stand at its ends."""


class _Given(NamedTuple):
    """A text, and the library's tokenizer that is to encode it, whole or in parts."""

    tokenizer: tokenizers.Tokenizer
    text: str
    breaks: Sequence[int] | None
    """None where control tokens are not looked for."""

    def part(self, start: int, end: int) -> str:
        """``text[start:end]``, with its breaks."""
        text = self.text[start:end]
        return text if self.breaks is None else broken(text, within(self.breaks, start, end))

    def encode_fast(self, start: int, end: int) -> tokenizers.Encoding:
        """Token ids of a part, without BOS and offsets."""
        # The batch call alone has a variant that skips the offsets: half the time on long texts.
        return self.tokenizer.encode_batch_fast([self.part(start, end)], add_special_tokens=False)[0]

    def num_tokens(self, start: int, end: int) -> int:
        """Number of tokens of a part, without BOS."""
        return len(self.encode_fast(start, end))


class Tokenizer:
    """A model's ``tokenizer.json``, with the tokens that other files declare. Safe to use from several threads.

    A message of a conversation is encoded without looking for control tokens in it, so that a typed ``<|im_end|>`` is
    six or so ordinary tokens. Text that the server made (a rendered chat template) and raw prompts, which clients
    render themselves, are encoded with ``parse_special=True``: control tokens are then matched in the text as it
    stands, before normalisation. The library keeps that choice as state of a tokenizer, so there are two of its own.
    Added tokens that are not control tokens (``<think>`` in some models) are recognised in any text.
    """

    def __init__(
        self,
        definition: str,
        *,
        add_bos: bool = False,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        declared: DeclaredTokens | None = None,
        file: Path | None = None,
    ) -> None:
        """
        Args:
            definition: contents of a ``tokenizer.json``.
            add_bos: start encoded texts with BOS even if the definition itself does not.
            bos_token, eos_token, pad_token: texts of these tokens; None where the model has none.
            declared: the tokens that other files than ``tokenizer.json`` declare.
            file: where the definition is from; it is read again, if need be, instead of kept.

        Raises:
            TokenizerError: the definition is not usable.
        """
        self._definition: str | Path = file or definition
        library = load_library(definition, declared or DeclaredTokens())
        self._plain, self._parsing = library.plain, library.parsing
        self._special_ids = library.control_ids
        added = library.plain.get_added_tokens_decoder()
        self.special_tokens: frozenset[str] = frozenset(added[token_id].content for token_id in self._special_ids)
        self.control = ControlTokens(self.special_tokens)
        self._bytes: TokenBytes = build_token_bytes(
            library.decoder,
            library.plain.get_vocab(with_added_tokens=True),
            {token_id: token.content for token_id, token in added.items()},
        )
        self._longest = max(map(len, self._bytes.table), default=0)
        self.long_work = LongWork()
        """Queue of the work on long texts."""
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.pad_token = pad_token
        self.bos_token_id = self._plain.token_to_id(bos_token) if bos_token else None
        self.eos_token_id = self._plain.token_to_id(eos_token) if eos_token else None
        self._prefix, self._suffix = library.prefix, library.suffix
        if add_bos:
            self._prefix = [*self._missing_bos(), *self._prefix]

    @classmethod
    def load(
        cls,
        tokenizer_file: Path,
        *,
        add_bos: bool = False,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
    ) -> Tokenizer:
        """Reads a ``tokenizer.json``, and what the other files of its directory declare.

        Raises:
            TokenizerError: a file is missing, unreadable or of an unsupported kind.
        """
        try:
            definition = tokenizer_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{tokenizer_file}: {error}") from error
        try:
            declared = read_declared_tokens(tokenizer_file.parent, definition.encode())
        except StoreError as error:
            raise TokenizerError(str(error)) from error
        try:
            return cls(
                definition,
                add_bos=add_bos,
                bos_token=bos_token,
                eos_token=eos_token,
                pad_token=pad_token,
                declared=declared,
                file=tokenizer_file,
            )
        except TokenizerError as error:
            raise TokenizerError(f"{tokenizer_file}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a model's logits may be wider."""
        return len(self._bytes.table)

    def vocabulary(self) -> Vocabulary:
        """What an engine has to know of the tokenizer to follow grammars. May read a file of many megabytes.

        Raises:
            OSError: the file is gone.
        """
        definition = self._definition
        return Vocabulary(
            token_bytes=list(self._bytes.table),
            control_tokens={token_id: self.token_text(token_id) for token_id in sorted(self._special_ids)},
            definition=definition if isinstance(definition, str) else definition.read_text(encoding="utf-8"),
        )

    @property
    def leading_spaces(self) -> int:
        """Spaces that decoding drops from the start of a text, because encoding adds them there."""
        return self._bytes.leading_spaces

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        breaks: Sequence[int] = (),
        max_tokens: int | None = None,
        keep_last: int | None = None,
    ) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: add BOS (and EOS) where the model's tokenizer does. A text that begins with that BOS
                itself, as a client renders it from a chat template, does not get a second one. Here transformers and
                vLLM add another; no model was trained on two, and llama.cpp warns of them.
            parse_special: take control tokens in the text for what they say.
            breaks: positions in the text, ascending. With ``parse_special``, a control token that has one of them
                inside is plain text; all else is encoded as it is without them.
            max_tokens: most tokens that are of use. A text that is sure to have more is refused without making them
                all; one that has a few more may come back whole.
            keep_last: return this many of the last tokens alone, added ones included.

        Raises:
            RequestError: the text is too long, or holds lone surrogates, which no encoding can carry.
        """
        given = self._given(text, breaks, parse_special=parse_special)
        start = 0
        with _refusing_surrogates():
            if keep_last is not None and (max_tokens is None or keep_last <= max_tokens):
                start = last_part(len(text), keep_last, given.num_tokens, self._longest)
            else:
                self._check_fits(given, max_tokens)
            ids: list[int] = given.encode_fast(start, len(text)).ids
        if add_special_tokens:
            # The end of a text that was cut has more tokens than are kept, so what goes before them does not show.
            ids = self.with_added(ids)
        return ids if keep_last is None else ids[-keep_last:]

    async def encode_async(
        self, text: str, *, deadline: float | None = None, **options: Unpack[EncodeOptions]
    ) -> list[int]:
        """:meth:`encode`, in a thread when the text is long (the library lets other threads run meanwhile).

        Args:
            deadline: instant of ``time.monotonic`` up to which the result is of use.

        Raises:
            RequestError: as :meth:`encode`; 504, the deadline passed while other long texts had their turn.
        """
        return await self._in_turn(len(text), lambda: self.encode(text, **options), deadline)

    def encode_with_offsets(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        breaks: Sequence[int] = (),
        max_tokens: int | None = None,
    ) -> EncodedText:
        """Token ids of a text, and where each begins. Arguments and errors as for :meth:`encode`."""
        given = self._given(text, breaks, parse_special=parse_special)
        marked = given.part(0, len(text))
        with _refusing_surrogates():
            self._check_fits(given, max_tokens)
            encoding = given.tokenizer.encode_batch([marked], add_special_tokens=False)[0]
        offsets = [start for start, _ in encoding.offsets]
        if marked != text:
            offsets = offsets_without_breaks(text, breaks, offsets)
        before, after = self._added_to(encoding.ids) if add_special_tokens else ([], [])
        offsets = [0] * len(before) + offsets + [len(text)] * len(after)
        return EncodedText([*before, *encoding.ids, *after], offsets)

    async def encode_with_offsets_async(
        self, text: str, *, deadline: float | None = None, **options: Unpack[TextOptions]
    ) -> EncodedText:
        """:meth:`encode_with_offsets`, in a thread when the text is long. Deadline as for :meth:`encode_async`."""
        return await self._in_turn(len(text), lambda: self.encode_with_offsets(text, **options), deadline)

    def with_added(self, token_ids: list[int]) -> list[int]:
        """Token ids with those (BOS, EOS) that the model's tokenizer adds before and after a text's own."""
        before, after = self._added_to(token_ids)
        return [*before, *token_ids, *after] if before or after else token_ids

    def check_length(self, characters: int, max_tokens: int | None) -> None:
        """Refuses a text whose length alone shows that it has more than ``max_tokens`` tokens.

        Args:
            characters: length of the text.
            max_tokens: most tokens that are allowed; None for any number.

        Raises:
            RequestError: 400.
        """
        if max_tokens is not None and characters > most_characters(max_tokens, self._longest):
            raise TooManyTokensError(max_tokens)

    def _given(self, text: str, breaks: Sequence[int], *, parse_special: bool) -> _Given:
        return _Given(self._parsing, text, breaks) if parse_special else _Given(self._plain, text, None)

    def _check_fits(self, given: _Given, max_tokens: int | None) -> None:
        if max_tokens is not None and exceeds(len(given.text), max_tokens, given.num_tokens, self._longest):
            raise TooManyTokensError(max_tokens)

    async def _in_turn(self, size: int, work: Callable[[], _T], deadline: float | None) -> _T:
        """The result of ``work`` on ``size`` characters or tokens, made in a thread if they are many."""
        return work() if size < THREAD_THRESHOLD else await self.long_work.run(size, work, deadline)

    def _added_to(self, token_ids: list[int]) -> tuple[list[int], list[int]]:
        """Ids that the model's tokenizer adds before and after a text's own."""
        has_prefix = token_ids[: len(self._prefix)] == self._prefix
        return [] if has_prefix else self._prefix, self._suffix

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence of ids; bytes that are not UTF-8 become U+FFFD."""
        data = self.join_bytes(token_ids, skip_special_tokens=skip_special_tokens)
        for _ in range(self.leading_spaces):
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    async def decode_async(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, deadline: float | None = None
    ) -> str:
        """:meth:`decode`, in a thread when there are many ids. Raises :class:`RequestError` 504 past the deadline."""
        return await self._in_turn(len(token_ids), lambda: self.decode(token_ids, skip_special_tokens), deadline)

    def join_bytes(
        self, token_ids: Iterable[int], *, skip_special_tokens: bool, shown: frozenset[int] = frozenset()
    ) -> bytes:
        """Bytes of all tokens, joined. Of the control tokens that are left out, ``shown`` are not."""
        skip = self._special_ids - shown if skip_special_tokens else frozenset()
        return b"".join(self.token_bytes(token_id) for token_id in token_ids if token_id not in skip)

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token; none for an id that the tokenizer does not have (the logits' padding)."""
        table = self._bytes.table
        return table[token_id] if 0 <= token_id < len(table) else b""

    def token_text(self, token_id: int) -> str:
        """A token's own bytes as text, undecodable ones replaced."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Whether an id is that of a control token. These are left out of answers."""
        return token_id in self._special_ids

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control tokens."""
        return self._special_ids

    def token_id(self, text: str) -> int | None:
        """Id of the token with exactly this text, control token or not; None if there is none."""
        return self._plain.token_to_id(text)

    def control_token_id(self, text: str) -> int | None:
        """Id of the control token with this text; None if there is none."""
        return self._plain.token_to_id(text) if text in self.special_tokens else None

    def _missing_bos(self) -> list[int]:
        if self.bos_token_id is None:
            raise TokenizerError(f"BOS is to be added, but bos_token {self.bos_token!r} is not a token")
        return [] if self.bos_token_id in self._prefix else [self.bos_token_id]


@contextlib.contextmanager
def _refusing_surrogates() -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise RequestError("The text is not valid Unicode: it contains lone surrogates.") from error
