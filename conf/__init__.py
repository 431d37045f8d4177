"""Hydra config groups; a package, so that they are found wherever moesaic is installed."""
