"""From a run, or from an `adapter/` folder, to a model that answers: one way in, for evaluation and serving.

folders (where adapter and base lie, and whether they belong together) and settings (which pixels the model was trained
on) -> model. What a folder names is looked for in a stated order, and what is found is checked, never assumed.
"""
