"""Experiments on one subject that no benchmark asks for: from tables of answers under many views to reports and figures.

spoofing (told a wrong GSD: Figure 10), referee (GSD predicted, noisy, or predicted in training; calibration of SSE-U),
probes (what each rank dimension knows: Figure 11; probes_read takes the readings). `*_figure(s)` draw, nothing else.
"""
