"""Text and token ids, on the API process's side: tokenizer, chat template, detokenizer, stop strings."""
