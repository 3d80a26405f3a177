"""`python -m scaleearth_pl.prepare.report`."""

from scaleearth_pl.prepare.report.command import main

raise SystemExit(main())
