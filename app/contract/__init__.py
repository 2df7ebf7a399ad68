"""Records that the API process and the engine process share: ``msgspec`` structs that know no torch, HTTP or text.

:mod:`~app.contract.request` what is asked for, :mod:`~app.contract.frames` what crosses the socketpair,
:mod:`~app.contract.step` what crosses from the scheduler to a runner, :mod:`~app.contract.config` an engine's
configuration, :mod:`~app.contract.info` facts about a runner.
"""
