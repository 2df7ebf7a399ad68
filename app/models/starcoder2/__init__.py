"""StarCoder2 (Lozhkov et al. 2024): grouped queries, LayerNorms and an MLP without a gate."""
