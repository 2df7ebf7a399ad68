"""Paged KV blocks and the prefix cache over them, for groups of layers that keep different things.

A new kind of group is a file here and a row of ``manager.KINDS``. The pages of an encoder (``cross``) would be one:
found by a hash of the encoder's input instead of the tokens before them, and never given back before the request ends.
"""
