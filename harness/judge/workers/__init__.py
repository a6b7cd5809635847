"""The worker processes of a pair, and the judge's end of the wire to each."""
