"""Ablations: from arms named in a config file to tables that compare them fairly."""
