"""Optimizers that use score functions, the gradients of sampled log-probabilities: Rank-1 and R-Kalman."""
