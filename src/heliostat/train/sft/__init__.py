"""Supervised fine-tuning: updates on worked solutions, the warm start, and feedback on its statistics."""
