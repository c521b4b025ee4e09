"""The engine that samples from a running vLLM server: its HTTP client, the sync of weights, and the parity probe."""
