"""Numbers about predictions, from arrays alone: metrics and their intervals."""
