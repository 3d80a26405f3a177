"""What runs leave behind to numbers, tables and figures; imports no training, because files are the seam.

Here: predictions (the files), groups, bootstrap over places, floors (blind, question_tables), sse_u, summary, compare.
evaluator/ asks checkpoints, rsvqa/ scores anybody's answers, benchmarks/ reads public ones, protocols/ asks what scale
does, and falsify/ draws the verdict from all of it.
"""
