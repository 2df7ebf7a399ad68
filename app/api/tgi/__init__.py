"""The protocol of text-generation-inference.

A stop string is part of the answer here, and nothing is sampled unless asked for.
"""
