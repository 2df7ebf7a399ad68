"""Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values."""
