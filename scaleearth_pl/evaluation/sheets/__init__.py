"""`scaleearth sheets`: what the numbers look like (the paper's Figures 12 to 16): images, questions, everybody's answers.

choose (variants, and a draw that sees no answer) -> answers (texts and pictures of what was drawn) or public (the same of
XLRS-Bench and OmniEarth-Bench) -> words (rule of the draw, counts over the whole split) -> draw, on paper (PNG), and page
(HTML) -> main. A sheet is no evidence, and says so.
"""
