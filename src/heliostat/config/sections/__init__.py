"""The sections of a recipe and their settings, each with its type, bounds, default and a phrase that explains it.

    base  run  task  rollout  teacher  judge  training  ->  recipe

Sections whose keys depend on a name (``objective``, ``optimizer``, ``task``) keep the remaining keys as ``settings``.
The package that defines the named thing checks them with ``build_checked``.

Left out: reading settings (``layers``, ``recipes``).
"""
