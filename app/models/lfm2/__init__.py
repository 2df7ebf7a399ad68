"""LFM2: gated short convolutions and a few layers of attention, dense feed-forward parts or experts."""
