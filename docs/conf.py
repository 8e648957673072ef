"""How Sphinx builds the pages: ``make docs``."""

from __future__ import annotations

from typing import Any

import lightning_bsqh

project = "lightning-bsqh"
author = "The lightning-bsqh developers"
copyright = "the lightning-bsqh developers, Apache-2.0"
version = release = lightning_bsqh.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lightning-bsqh {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
highlight_language = "text"

# The same anchors as those of a forge, so that links work in both.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def _plain_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write |x| for an absolute value, which would be a substitution in reStructuredText."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _plain_bars)
