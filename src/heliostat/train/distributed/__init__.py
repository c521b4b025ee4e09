"""Distributed training: ranks and collectives, FSDP sharding, sharded checkpoints, sampling from sharded weights."""
