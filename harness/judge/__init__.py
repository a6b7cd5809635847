"""The trusted side: inputs, oracle, comparison, clock and verdict of one pair."""
