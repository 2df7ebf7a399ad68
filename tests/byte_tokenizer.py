"""A tiny real tokenizer: token ids 0-255 are the bytes themselves, four control tokens follow.

It loads in microseconds, encodes any text without merges, and exercises the same code as a model's own tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BOS_TOKEN, BOS_ID = "<s>", 256
EOS_TOKEN, EOS_ID = "</s>", 257
IM_START, IM_START_ID = "<|im_start|>", 258
IM_END, IM_END_ID = "<|im_end|>", 259
VOCAB_SIZE = 260

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE, by byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def build_byte_tokenizer() -> Tokenizer:
    """No BOS is added: the tokenizer has no post-processor."""
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = [BOS_TOKEN, EOS_TOKEN, IM_START, IM_END]
    tokenizer.add_special_tokens([AddedToken(content, normalized=False, special=True) for content in control])
    return tokenizer


def write_byte_tokenizer(directory: Path) -> Path:
    """Writes ``tokenizer.json`` into ``directory`` and returns its path."""
    path = directory / "tokenizer.json"
    build_byte_tokenizer().save(str(path))
    return path
