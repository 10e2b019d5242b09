"""Pretrained weights: file formats, name maps, and loading with a manifest."""
