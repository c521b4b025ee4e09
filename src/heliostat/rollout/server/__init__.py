"""The engine that samples from a running server: HTTP, completions, sync of weights, and a dialect for each kind."""
