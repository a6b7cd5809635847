"""Is the solution the same function as the reference? Trials, comparisons, causes."""
