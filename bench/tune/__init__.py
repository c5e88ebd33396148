"""`python -m bench tune`: the fastest launch configurations of convolutions, measured or from a record."""
