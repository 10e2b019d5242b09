"""Fine-tune any pretrained model under any freezing scheme, and know afterwards what trained."""

__version__ = "0.1.0"
