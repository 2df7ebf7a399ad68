"""Tiers of the prefix cache below the paged pools: memory of the host, then files.

A *record* is the bytes of one block of a KV group, all layers of the group one after another. A record's *name* is its
group and the chained hash of its tokens. What a tier does not have, or has damaged, is a miss and never an error.
"""
