"""File to metres on the ground, raster to RGB. Imports core only."""
