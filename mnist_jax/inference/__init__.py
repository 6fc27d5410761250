"""What people do with a trained network."""
