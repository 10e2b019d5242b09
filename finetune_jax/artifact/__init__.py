"""What leaves a run: a folder that is enough to predict elsewhere."""

from finetune_jax.artifact.folder import Artifact, load_artifact, save_artifact

__all__ = ["Artifact", "load_artifact", "save_artifact"]
