"""The Messages protocol of Anthropic.

Answers are lists of content blocks, streams are named events; the system text and the tools are fields of their own.
"""
