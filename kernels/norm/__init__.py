"""Batch norm and what surrounds it: the op, the passes that it is made of, the activations."""
