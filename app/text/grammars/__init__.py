"""Grammars that bind an answer to a form, from every notation that clients send."""
