"""Runs, files, texts, verifiers, servers and matrices broken on purpose: ``python -m tests.torture``."""
