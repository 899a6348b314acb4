"""Real files, which are not part of the repository: beside it, or where D4RT_SHARED says. Tests skip without them."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("D4RT_SHARED") or Path(__file__).parents[2] / "shared") / "data"
