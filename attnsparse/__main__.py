"""`python -m attnsparse` is the command `attnsparse`."""

import sys

from .cli.main import main

sys.exit(main())
