"""What a number format costs: perplexity and agreement with fp32 on texts that ship with the package."""
