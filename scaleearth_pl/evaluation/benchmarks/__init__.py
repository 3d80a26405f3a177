"""Multiple-choice benchmarks of remote sensing, from local files: xlrs (XLRS-Bench-lite), omniearth (OmniEarth-Bench).

What they share: rows (JSON or parquet), pixels (very large images), choice (question, reply, macro means), letters (how
each harness reads one from a text) and boxes (visual grounding).
"""
