"""Mistral and Ministral: a Llama whose layers may slide."""
