"""Campaigns of faults: files are damaged and processes are killed, and every outcome is counted."""
