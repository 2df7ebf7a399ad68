"""What the clients among the verbs (bench, chat, doctor) share: addresses, keys and server-sent events over HTTP.

Knows nothing of our own server, so that any server can be asked.
"""
