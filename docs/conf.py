"""How Sphinx builds the documentation: `make docs`."""

from dnnbrain_app import __version__

project = "dnnbrain"
author = "The dnnbrain developers"
copyright = f"2020-2026, {author}"  # noqa: A001  Sphinx names it
release = version = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"dnnbrain {release}"
