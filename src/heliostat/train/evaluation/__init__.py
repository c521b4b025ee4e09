"""Held-out evaluation: pass rates with intervals, their rows in a run folder, and the schedule within a run."""
