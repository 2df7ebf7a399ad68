"""Formats of tool calls and of reasoning: a file each."""
