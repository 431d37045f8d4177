"""Scripts that show moesaic with a model that was trained here: `make demo-live` runs them all."""
