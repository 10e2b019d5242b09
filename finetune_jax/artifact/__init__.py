"""The artifact of a run: a folder that is enough to predict elsewhere."""

from finetune_jax.artifact.folder import Artifact, save_artifact

__all__ = ["Artifact", "save_artifact"]
