"""The load generator behind ``tuili bench``: asks any OpenAI-compatible server over HTTP and says how it did.

Knows nothing of our own server, so that all servers are measured alike.
"""
