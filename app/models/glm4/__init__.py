"""GLM-4: half of each head is rotated, in pairs of neighbours; the models of 2025 norm on both sides of a sublayer."""
