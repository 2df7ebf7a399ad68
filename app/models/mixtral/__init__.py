"""Mixtral: a Mistral whose layers send each token through a few experts."""
