"""Phi-3, Phi-3.5 and Phi-4-mini (Abdin et al. 2024): a Llama whose checkpoints fuse projections, with LongRoPE."""
