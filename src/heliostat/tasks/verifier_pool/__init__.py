"""Verifiers run in worker processes under time and memory limits; a worker that hangs or dies is replaced."""
