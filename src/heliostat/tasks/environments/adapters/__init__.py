"""Environments of other packages, wrapped unchanged: one adapter a file.

Each file has a predicate ``matches``, which recognises a class or an object by its methods, and an ``Environment`` that
wraps the object. None imports the package that it wraps before it is used.
"""
