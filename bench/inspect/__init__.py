"""A closer look at kernels: their code, a trace, Nsight Compute's counters, another revision's times."""
