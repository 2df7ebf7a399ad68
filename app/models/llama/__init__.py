"""Llama, and what was made to its shape (SmolLM, …)."""
