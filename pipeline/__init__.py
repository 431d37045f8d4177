"""What runs stages: command line, config, checkpoints, tracking. It knows stages by their contract alone."""
