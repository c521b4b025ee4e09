"""Training of weights stored in a lower-precision dtype.

master_copies   float32 copies of bfloat16 weights: created, reconciled with the weights, rounded into them
gradients       gradients accumulated in float32
"""
