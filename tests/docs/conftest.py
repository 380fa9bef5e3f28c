"""Import `docs/reptk_pages`, which Sphinx imports from the folder of the documentation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
