"""The least logit that top_k, top_p and min_p keep, on a GPU: an op of its own. The code of ``sample`` starts it."""
