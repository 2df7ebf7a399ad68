"""Executors of steps: as one recording for all sizes, padded to one of a few recorded sizes, or op by op."""
