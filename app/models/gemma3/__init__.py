"""Gemma 3: sandwich norms, and layers with a window between layers that see all positions."""
