"""Gemma 4: sandwich norms, two kinds of attention, inputs of their own for layers, pages shared by the last ones."""
