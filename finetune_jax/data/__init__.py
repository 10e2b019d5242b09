"""Data sources, deterministic preprocessing, random augmentation on device, and batches."""
