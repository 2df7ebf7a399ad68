"""Routes that belong to no protocol: probes, metrics, tokenizer, requests under way."""
