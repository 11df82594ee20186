"""How the documentation is built: ``sphinx-build docs docs/_build``, without a network."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import zoo  # noqa: F401 (what torchvision's import asks for)

project = "sitout"
author = project_copyright = "The sitout developers"
version = release = version_of("sitout")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "sitout"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sourcelink = False

add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Names of ours that signatures import for type checkers only.
autodoc_type_aliases = {
    "Address": "sitout.backends.Address",
    "DataSet": "sitout.data.DataSet",
    "Event": "sitout._study.execute.Event",
    "MaskKey": "sitout.masks.MaskKey",
    "Preprocess": "sitout.data.Preprocess",
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = ["Shape", "Differs", "Reference"]

# A reference to a name of ours that does not resolve fails the build. These live elsewhere, or
# are private types behind a public field.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|npt|numpy|pd|pandas|optuna|os|collections|pathlib|types)\..*"),
    (r"py:.*", r"Tensor|Path|Sequence|Mapping|Callable|ModuleType|ProcessGroup|DeviceMesh"),
    (r"py:.*", r"TypeError|ValueError|ImportError|Exception|NotFittedError"),
    (r"py:class", r"ArrayLike|NDArray|Pair|sitout\.mc\._comparison\.Score"),
    (r"py:class", r"nn\.Module|TrainingArguments|Trainer(State|Control)"),
    (r"py:class", r"Where|Edit|Rates|sitout\._sites\._site\.(Sites|Measured)"),
    (r"py:class", r"Features|Law|sitout\.data\._layouts\.(Table|Grid)"),
]


def setup(app):
    """Connect the two repairs below."""
    app.connect("source-read", end_blocks)
    app.connect("autodoc-process-signature", shorten_arrays)


def end_blocks(app, name, source):
    """Drop the blank line that ends the output of a doctest before the closing fence."""
    source[0] = re.sub(r"\n\n( *```\n)", r"\n\1", source[0])


def shorten_arrays(app, what, name, obj, options, signature, returns):
    """Write ``ndarray`` without its type parameters."""
    long = re.compile(r"(\S*\bndarray)\[tuple\[[^]]*\], [^]]*\[[^]]*\]\]")
    return tuple(text and long.sub(r"\1", text) for text in (signature, returns))
