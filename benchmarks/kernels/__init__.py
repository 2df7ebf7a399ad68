"""One benchmark a native op. Each prints rows with GB/s, GOP/s and their share of what the machine can do."""
