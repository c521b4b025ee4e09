"""Prompts: chat messages rendered by the template and encoded to token ids."""
