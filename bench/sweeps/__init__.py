"""Sweeps within a budget: ready files of arms, and how often successive halving is right."""
