"""Granite 3: a Llama with factors on embeddings, scores, what a sublayer adds, and logits."""
