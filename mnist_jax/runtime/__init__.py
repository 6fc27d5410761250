"""What any training run needs. No module here imports the rest of the package."""
