"""These tests need torch and transformers; they import the oracle from the folder above."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
