"""`python -m scaleearth_pl` is the console script `scaleearth`."""

import sys

from scaleearth_pl.cli import main

sys.exit(main())
