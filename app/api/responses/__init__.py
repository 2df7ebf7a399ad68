"""The OpenAI Responses protocol: answers made of items, that may be kept and gone on from."""
