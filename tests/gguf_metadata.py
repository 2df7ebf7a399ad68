"""Small GGUF tokenizer metadata, as the file format has it."""

from __future__ import annotations

from typing import Any

from gguf import TokenType

from tests.byte_tokenizer import byte_alphabet

SPM_PIECES = ["▁▁", "▁t", "he", "▁the", "in", "ing", "▁w", "or", "ld", "▁world", "▁th", "é", "你好"]
SPM_CHARACTERS = "▁thewingorldé你好"


def byte_level_metadata(pre: str | None, merges: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """Byte-level BPE: ids 0-255 are bytes, then the results of the merges, then BOS, EOS and ``<think>``."""
    tokens = byte_alphabet() + [merge.replace(" ", "") for merge in merges]
    types = [TokenType.NORMAL] * len(tokens) + [TokenType.CONTROL, TokenType.CONTROL, TokenType.USER_DEFINED]
    tokens += ["<|begin|>", "<|end|>", "<think>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }
    if pre is not None:
        metadata["tokenizer.ggml.pre"] = pre
    return metadata | {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


def sentencepiece_metadata(**fields: Any) -> dict[str, Any]:
    """Llama-2 style: ``<unk> <s> </s>``, 256 byte tokens, pieces by falling score, single characters last."""
    control = ["<unk>", "<s>", "</s>"]
    pieces = SPM_PIECES + [character for character in SPM_CHARACTERS if character not in SPM_PIECES]
    tokens = control + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    types += [TokenType.NORMAL] * len(pieces)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(pieces))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
