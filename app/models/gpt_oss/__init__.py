"""gpt-oss: experts with biases and a clamped gate, attention sinks, every other layer with a window."""
