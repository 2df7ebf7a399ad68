"""Cohere's Command R, Aya and Command R7B: one norm for both parts of a layer, neighbours rotated."""
