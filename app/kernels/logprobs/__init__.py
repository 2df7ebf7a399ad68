"""Log-probabilities on a GPU, an op of its own. The code of ``sample``, whose public function it is, starts it."""
