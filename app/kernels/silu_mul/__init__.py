"""SiLU·mul on a GPU as an op of its own, behind a library's matrix product. The code of ``linear`` starts it."""
