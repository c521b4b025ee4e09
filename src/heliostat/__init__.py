"""Heliostat: post-train language models by policy mirror descent, and keep them on target."""

__version__ = "0.1.0"
