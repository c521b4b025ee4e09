"""``python -m heliostat`` is the command ``heliostat``."""

import sys

from heliostat.cli import main

if __name__ == "__main__":
    sys.exit(main())
