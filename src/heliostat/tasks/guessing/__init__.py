"""Guess the settings of a ``file`` task from its rows: the columns, the answer marker and the verifier."""
