"""Checks of a model against a reference: its own plain forward, and the folder it was saved to."""
