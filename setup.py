"""The list of packages: configs lie beside the package in the repository, and inside it installed.

Everything else about the distribution is in pyproject.toml.
"""

from setuptools import find_namespace_packages, find_packages, setup

configs = find_namespace_packages(include=["configs", "configs.*"])

setup(
    packages=find_packages(include=["finetune_jax", "finetune_jax.*"])
    + [f"finetune_jax.{package}" for package in configs],
    package_dir={"finetune_jax.configs": "configs"},
)
