"""`python -m scaleearth_pl.evaluation.rsvqa`."""

from scaleearth_pl.evaluation.rsvqa.command import main

raise SystemExit(main())
