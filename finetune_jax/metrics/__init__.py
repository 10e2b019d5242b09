"""Metrics and their intervals, computed from arrays alone."""
