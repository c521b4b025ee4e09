"""The terminal of a run: progress lines, and Ctrl-C between steps."""
