"""Other inference servers and ours, under the same four workloads: ``python -m benchmarks.peers``."""
