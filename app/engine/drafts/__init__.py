"""Guesses of tokens to come, which a request's next row verifies: text is the same with and without them.

A drafter here needs token ids alone. One that needs a model's tensors belongs to the runner, which gives its guesses
with a row's result (:attr:`app.contract.step.RowOutput.draft_token_ids`).
"""
