"""What kernels should take: times of a measured card, and factors for kernels that were rewritten since."""
