"""What is an RSVQA predictions file worth? `python -m scaleearth_pl.evaluation.rsvqa score FILE --matcher NAME`.

files, cells, columns, rows (any file to cases, with what was dropped), types (read off questions) -> matchers/ -> score
-> command.
table: our own evaluations by matcher, GSD policy and variant.
metric is the official one by itself, for our own runs: it bins target and prediction and is a matcher, too.
"""
