"""GPT-NeoX (Black et al. 2022) and Pythia: attention and feed-forward part of a layer side by side."""
