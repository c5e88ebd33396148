"""Measurements. Records, each with its command, hardware and versions, are kept under `bench/results/`."""
