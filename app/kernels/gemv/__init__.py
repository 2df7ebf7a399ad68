"""Matrix-vector product: a linear layer of one token on a GPU. The code of ``linear`` starts it."""
