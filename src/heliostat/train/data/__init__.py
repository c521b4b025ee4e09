"""Training data: problems by step, prefixes, the trace log, and the checks of data before step 1."""
