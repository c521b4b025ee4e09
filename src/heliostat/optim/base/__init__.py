"""Parts that every optimizer here is composed of.

optimizer       the base class: steps that would not be finite are skipped, replicas compared
own_precision   its parent: no autocast inside a step, master copies of low-precision weights
saving          its parent: saving, copying and printing
settings        hyperparameters from a dataclass and keywords, checked by name
update_parts    weight decay, momentum, the bound on the divergence
adamw           AdamW for the parameters that an optimizer's own rule does not cover
param_groups    groups of matrices, which decay, and of vectors, which do not
snapshot        weights and state before a step, to restore them
"""
