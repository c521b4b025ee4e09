"""Audit of an environment before training on it: returns of worthless policies, replays, siblings and seeds."""
