"""Granite 3 with experts, alone or beside an MLP that every token goes through."""
