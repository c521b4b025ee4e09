"""The guard: signals that say how a run is doing, detectors that notice, controllers that act.

    signals (Batch -> numbers)  ->  detectors (numbers -> alarms)  ->  controllers and actions

Left out: the loop that the guard watches (``train``), pages (``report``). Nothing here imports torch on its own:
detectors, controllers and text statistics work on a laptop that has only the log of a run.
"""
