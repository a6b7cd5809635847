"""The user's reference, its float64 oracle, and questions about their outputs."""
