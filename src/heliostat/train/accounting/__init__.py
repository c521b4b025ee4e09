"""Costs of a run: FLOPs by phase, a profile of its first steps, and the machine's peak."""
