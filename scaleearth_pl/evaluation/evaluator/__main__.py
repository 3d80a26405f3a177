"""`python -m scaleearth_pl.evaluation.evaluator` is `scaleearth evaluate`."""

from scaleearth_pl.evaluation.evaluator.command import main

raise SystemExit(main())
