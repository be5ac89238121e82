"""The version of dumap."""

__version__ = "0.1.0"
