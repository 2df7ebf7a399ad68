"""ERNIE 4.5, the dense ones: a Llama that rotates pairs of neighbours."""
