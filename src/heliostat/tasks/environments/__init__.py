"""Environments that answer a model over several turns: contract, tools, adapters, and the processes they run in."""
