"""The guard of a run: signals to alarms to actions, rollbacks, and the panel of held-out prompts."""
