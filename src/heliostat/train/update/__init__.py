"""One policy update: micro-batches over ranks, the safe optimizer step, and the metrics of the mirror step."""
