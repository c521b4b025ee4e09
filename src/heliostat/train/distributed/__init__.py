"""Processes: ranks and their collectives, FSDP sharding, sharded checkpoints, and sampling from sharded weights."""
