"""How a step runs: as one recording of any size, padded to one of a few recorded sizes, or op by op."""
