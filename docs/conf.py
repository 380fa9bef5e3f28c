"""Settings of Sphinx: sphinx-build -n -W --keep-going docs docs/_build"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reptk

project = "reptk"
author = "the contributors of reptk"
version = release = reptk.__version__

# reptk_pages is the package next to this file: it writes the pages in generated/.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reptk_pages"]
exclude_patterns = ["_build", "reptk_pages"]

html_theme = "furo"
html_title = f"reptk {version}"
html_copy_source = False

# "--option" must not become a dash.
smartquotes = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
# torch's docstring of `forward` says nothing of a loss.
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes are entries of the class already.
napoleon_use_ivar = True
python_use_unqualified_type_names = True

# Types in signatures that have no entry: of other libraries, whose documentation is not fetched, so that the build needs no
# connection; and of modules of reptk whose names are not public.
INTERNAL = (
    r"reptk\.(config|core|models|neighbors|data\.batches|data\.decoding|embeddings\.duplicates|embeddings\.files|embeddings\.retrieval|evaluate\.run"
    r"|methods\.ema|report\.section_settings)\."
)
nitpick_ignore_regex = [("py:.*", r"(?!reptk\.).*"), ("py:class", INTERNAL + ".*")]
