"""What any training run needs: pytrees, dictionaries and paths. Nothing here knows this project."""
