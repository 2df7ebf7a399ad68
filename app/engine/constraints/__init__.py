"""Grammars that bind what a request generates: compiled off the engine's thread, one matcher a sequence, a mask a step.

:mod:`~app.engine.constraints.base` what the engine asks of a constraint, :mod:`~app.engine.constraints.guidance`
llguidance behind it, :mod:`~app.engine.constraints.compiler` the threads that compile,
:mod:`~app.engine.constraints.masks` the thread that makes masks, :mod:`~app.engine.constraints.desk` what of all this
the engine's core sees.
"""
