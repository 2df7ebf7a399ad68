"""Native CPU kernels: a library without Python or torch in it, and programs of its ops.

``abi.h`` and ``abi.py`` hold the structs that both sides share, ``runtime.cpp`` the thread pool and the program runner,
``simd.h`` the vectors that every ``app/kernels/<op>/cpu.cpp`` is written in, once for all instruction sets.
"""
