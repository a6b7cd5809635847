"""How fast is the solution? Batches, clock, statistics, and the checks of timed calls."""
