"""Convolution: the op, its passes, how they are cut into tiles, and the launch that is chosen for each."""
