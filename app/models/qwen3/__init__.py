"""Qwen3: a Llama whose query and key heads are normed."""
