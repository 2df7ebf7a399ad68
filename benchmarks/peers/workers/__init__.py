"""Engines without a server, driven in a process of their own by :class:`benchmarks.peers.targets.WorkerTarget`.

These modules run under the peer's own Python: they import the standard library and that peer, nothing else of ours.
"""
