"""What the Triton kernels (``app/kernels/<op>/triton.py``) share.

``launch.py`` is the one way to start a kernel: on a GPU, under Triton's interpreter on a CPU, or written down to be
compiled ahead of time (``aot.py``). ``tuning.py`` reads launch shapes from checked-in tables; ``lib.py`` holds device
functions. Only ``triton.py`` files import them, and they are imported only where Triton is to run: neither torch nor a
CPU needs Triton.
"""
