"""Parity tests compare with other projects' implementations: see requirements-reference.txt."""

import os

import pytest

# Keras computes with JAX here, because its other back ends are heavier still.
os.environ.setdefault("KERAS_BACKEND", "jax")

pytest.register_assert_rewrite("harness")
