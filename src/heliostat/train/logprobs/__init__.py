"""Log-probabilities of completions under a model: rows, packing, layouts, gradient checkpointing."""
