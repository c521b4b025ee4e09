"""Engines that decode with the trainer's own weights in this process, and the choice between them."""
