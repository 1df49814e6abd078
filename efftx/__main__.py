"""`python -m efftx` is `efftx`."""

import sys

from efftx.cli import main

sys.exit(main())
