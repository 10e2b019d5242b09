"""Data: sources, deterministic preprocessing, augmentation on device, batches."""
