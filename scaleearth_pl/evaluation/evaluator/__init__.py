"""`scaleearth evaluate`: checkpoints x benchmarks x GSD policies, resumable, one JSON row a result.

model (a run to a subject) and views (what it is told of the GSD) -> engine (packed answers) over corpus (shards) or
choice (public benchmarks) -> run (a folder of answers) and row (the result), or table (all views in memory) -> command (its
options).
"""
