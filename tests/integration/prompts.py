"""Twelve prompts that pull a model in different directions."""

from __future__ import annotations

PROMPTS: dict[str, str] = {
    "nearly_empty": "A",
    "newline": "\n",
    "fact": "The capital of France is",
    "story": "Once upon a time, in a small village by the sea, there lived an old clockmaker who",
    "chat": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "python": 'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""\n',
    "sql": "SELECT customer_id, SUM(amount) AS total FROM orders WHERE",
    "json": '{"name": "Ada Lovelace", "born": 1815, "known_for": [',
    "chinese": "人工智能正在改变世界。机器学习是",
    "emoji_digits": "Numbers 1234567890 and faces 🙂🚀 mean that",
    "list": "Ten things to pack for a week in the mountains:\n1.",
    "long": "",
}
"""``long`` is filled up to 1,500 tokens by :func:`long_prompt`."""


def long_prompt(repeat: int = 60) -> str:
    """Prose without repetition that a tokenizer cannot shortcut: every sentence differs."""
    return " ".join(
        f"Sentence number {i} of the report says that on day {i * 7 % 31} the harbour received {i * i % 97} ships "
        f"and {i * 13 % 53} of them carried grain from the north."
        for i in range(repeat)
    )
