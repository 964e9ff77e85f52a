"""How fast db_setup is where it is felt, and where the time goes: see README.md next to this file."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WORK = REPOSITORY / ".bench"  # everything that is installed or written for the benchmarks

sys.path[:0] = [str(REPOSITORY / "db_setup"), str(REPOSITORY / "tests")]
