"""ERNIE 4.5 with experts, chosen with a correction, beside one that every token goes through."""
