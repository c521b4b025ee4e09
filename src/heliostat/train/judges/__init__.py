"""Judges: a reward model in this process, a language model on a server, and a user's own."""
