"""Rollouts: the request of a step, the scheduler that samples and verifies it, and the resulting groups."""
