"""Parts that every optimizer here is composed of.

optimizer        the base class: closures, float32 master copies, non-finite steps skipped, replicas compared
adamw            AdamW for the parameters that an optimizer's own rule does not cover
snapshot         weights and state before a step, to restore them
setting_ranges   accepted values of settings, checked by name
"""
