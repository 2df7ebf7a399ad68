"""The version, in a module that imports nothing: ``app`` itself leads to the whole tree."""

__version__ = "0.1.0"
