"""Granite 4: Mamba-2 and attention layers, a dense MLP alone or beside experts, with Granite's factors."""
