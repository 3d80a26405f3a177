"""`scaleearth falsify`: the experiment that could prove the idea wrong, from training to verdict.

plan (what was registered) -> runs (trains what is missing) -> measure (spoofing, policies, probes) -> verdicts -> report.
"""
