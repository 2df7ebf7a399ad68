"""Matrix product of linear layers and the output head on a GPU, with its epilogue. Their code starts it."""
