"""Qwen2-MoE: a Qwen2 whose layers, or some of them, have experts beside one that every token goes through."""
