"""Where the published material of the predecessor studies lies, if it is here at all (never in this repository)."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("OFFSCRIPT_PUBLISHED") or Path(__file__).parents[2] / "shared" / "published")
needs_published = pytest.mark.skipif(
    not ROOT.is_dir(),
    reason=f"the published material is not at {ROOT}; set OFFSCRIPT_PUBLISHED to its folder",
)
