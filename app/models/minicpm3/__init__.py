"""MiniCPM3: attention over latents, with factors on embeddings, sublayers and logits."""
