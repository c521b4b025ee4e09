"""Optimizers of linear layers, from statistics that hooks record: ``Eva`` and ``RING``, on one base class."""
