"""Rows of the user's data: reading within bounds, columns, splits, and data held in memory."""
