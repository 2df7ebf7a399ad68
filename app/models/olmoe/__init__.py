"""OLMoE: experts in every layer, all query heads normed as one vector, and all key heads."""
