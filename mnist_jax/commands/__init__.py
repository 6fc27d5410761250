"""The commands other than `train`: thin layers over the functions of the package."""
