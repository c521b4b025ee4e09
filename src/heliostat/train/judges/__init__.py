"""Judges: a reward model in this process, and a language model on a server."""
