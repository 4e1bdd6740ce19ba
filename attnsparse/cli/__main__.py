"""`python -m attnsparse.cli` is the command `attnsparse`."""

import sys

from .main import main

sys.exit(main())
