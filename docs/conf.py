"""Sphinx: `python -m sphinx -W --keep-going -b html docs build/docs` writes the documentation."""

import shutil
import sys
from pathlib import Path

import attnsparse

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "extensions"))

# Pages outside docs/ that belong to the documentation; Sphinx reads only what lies beneath this folder.
shutil.rmtree(HERE / "_copied", ignore_errors=True)
for source in ("CHANGELOG.md", "notebooks", "bench/README.md"):
    copy = HERE / "_copied" / source
    copy.parent.mkdir(parents=True, exist_ok=True)
    if (HERE.parent / source).is_dir():
        shutil.copytree(HERE.parent / source, copy)
    else:
        shutil.copy(HERE.parent / source, copy)

project = "attnsparse"
author = copyright = "attnsparse contributors"
version = release = attnsparse.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
    "plain_docstrings",
    "command_line",
    "links_out_of_docs",
]
exclude_patterns = ["_build", "extensions"]
html_theme = "furo"
html_title = f"attnsparse {release}"
default_role = "py:obj"  # in a docstring, `Model.run` is a link and any other `word` is code
toc_object_entries = False
add_module_names = False
python_maximum_signature_line_length = 88

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autoclass_content = "both"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

nb_execution_mode = "off"  # the suite runs the notebooks; here they are shown without outputs
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 4

suppress_warnings = ["myst.header"]  # a notebook may begin below level 1
