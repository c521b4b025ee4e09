"""Optimizers of weight matrices, from gradients alone: ``KroneckerSum`` and ``KroneckerProduct``, on one base class."""
