"""In which format weights are kept: as in the checkpoint, int8, or packed for the native kernels.

Models ask a :class:`~app.quant.placement.Placement` for their weights and never know which it is.
"""
