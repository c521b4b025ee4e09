"""Checks before step 1: of the recipe, of every prompt's encoding, and of the reward."""
