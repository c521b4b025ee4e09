"""Heliostat's objectives and optimizers inside other trainers, as plug-ins: nothing here is a fork.

    heliostat.adapters.trl        PMDTrainer and PMDConfig on TRL's GRPOTrainer
    heliostat.adapters.verl       policy losses and advantage estimators, registered when verl loads the module
    heliostat.adapters.prime_rl   a custom loss by import path
    heliostat.adapters.guard_callback   the guard as a callback of transformers' and TRL's trainers

Each module imports its framework, so import the one you need; this package imports none of them.

Left out: rollouts, rewards, sharding and checkpoints, which stay the frameworks' own.
"""
