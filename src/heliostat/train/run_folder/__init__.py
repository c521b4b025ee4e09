"""The run folder: its lock, logs, checkpoints, exported models and the frozen reference policy."""
