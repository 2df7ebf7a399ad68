"""Ollama's own protocol.

Streams are lines of JSON and the default; what a tool is called with is an object; times are nanoseconds.
"""
