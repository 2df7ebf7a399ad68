"""``tuili doctor``: a live server against the contracts of the clients that people have.

It knows no server of ours: what it asks is what those clients ask, what it expects is what they rely on.
"""
