"""Configuration of the documentation, which ``make docs`` builds."""

import os
import sys
from pathlib import Path

# The pages are executed when they are built. Python evaluates the graphs node by node: nothing is
# compiled, so that a page takes seconds. Python cannot run large fused loops. The pages of the
# gallery compile: their first cell, which is not shown, sets flags of its own.
os.environ["PYTENSOR_FLAGS"] = "cxx=,linker=py,optimizer_excluding=fusion"

# they use the models of the benchmark, and what tests rules
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

from pytensor_mvn_rewrites import __version__

project = "pytensor_mvn_rewrites"
author = "The pytensor_mvn_rewrites developers"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "numpydoc",
    "rules",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
# the gallery compiles, and machines have other work to do
nb_execution_timeout = 1200
# progress bars and the log of PyMC's samplers
nb_output_stderr = "remove"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "pydata_sphinx_theme"
html_title = "pytensor_mvn_rewrites"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
# the pages at the top have no pages below them to list
html_sidebars = {"*": []}
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
