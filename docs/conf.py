"""How the documentation is built: `make docs`, with warnings as errors. Nothing is loaded from another host."""

from __future__ import annotations

import gstalk

project = "gstalk"
author = "gstalk maintainers"
copyright = "gstalk maintainers; MIT license"
version = release = gstalk.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# A name in single backticks, in a docstring, is a link where the reference has it, and code where it hasn't.
default_role = "py:obj"
add_module_names = False
python_maximum_signature_line_length = 80
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_custom_sections = ["Blocks", "Protocol"]
napoleon_use_rtype = False
napoleon_attr_annotations = False

html_theme = "furo"
html_title = f"gstalk {version}"
html_static_path = ["_static"]
html_css_files = ["gstalk.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
