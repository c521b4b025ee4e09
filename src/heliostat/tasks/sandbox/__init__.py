"""Isolation of untrusted code: fresh interpreters, process trees, bounded messages, safe ``eval``."""
