"""Optimizer steps on several ranks.

replicas          which ranks hold copies of one model, whether the copies agree, and collectives over them
sharded_tensors   inner products and finiteness checks over tensors that may be sharded
ddp_join          steps inside DDP's ``join()``, which are refused
"""
