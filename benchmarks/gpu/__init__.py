"""The stages of ``benchmarks/gpu_report.py``, each a program of its own.

They need torch, triton, numpy, safetensors and msgspec, and write rows of JSON to the file that they are given.
"""
