"""One policy update: micro-batches over ranks, the guarded optimizer step, and the metrics of the mirror step."""
