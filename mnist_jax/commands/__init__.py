"""What people do with the trainer, beside training: thin over its functions."""
