"""DeepSeek-V2 and -V3, dense or with experts: attention over latents, one for each token."""
