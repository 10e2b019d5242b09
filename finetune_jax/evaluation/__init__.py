"""Scores that count every example once and carry an interval."""
