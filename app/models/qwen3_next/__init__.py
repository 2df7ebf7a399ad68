"""Qwen3-Next and Qwen3.5: gated delta rule and gated attention in turn, dense feed-forward parts or experts."""
