"""Qwen3-MoE: a Qwen3 whose layers, or some of them, send each token through a few experts."""
