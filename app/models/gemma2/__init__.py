"""Gemma 2: sandwich norms, capped scores and logits, every other layer with a window."""
