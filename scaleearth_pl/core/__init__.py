"""Leaves of the import graph: units, samples, batches, errors, metrics. Imports nothing of the package."""
