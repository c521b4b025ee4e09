"""Verifiers: functions that score an answer, and the text and math comparisons they are built from."""
