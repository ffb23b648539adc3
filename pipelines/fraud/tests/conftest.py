"""The simulator is a script, not a package: it is imported by its path below the repository."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
