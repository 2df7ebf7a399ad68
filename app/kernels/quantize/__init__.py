"""Int8 of activations, as an op of its own where the kernel before it cannot do it. Other kernels' code starts it."""
