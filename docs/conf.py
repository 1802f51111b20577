"""The site of these pages and of the reference: ``sphinx-build -W --keep-going docs build/docs``.

Needs doxygen, the package itself and its extra ``docs``; nothing is fetched from a network. The
scripts of ``examples/gallery`` run and assert what their pages claim: with the variable
DESCRAMBLE_FAST_QUICK set in a minute or two, otherwise in about ten. ``-D plot_gallery=0`` leaves
them out.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from numpydoc.xref import DEFAULT_LINKS
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import descramble_fast as df

_ROOT = Path(__file__).resolve().parents[1]
_XML = _ROOT / "build" / "doxygen"

project = "descramble_fast"
author = "The descramble_fast developers"
copyright = author
version = release = df.__version__

# Formulas are written in Unicode, which help() shows as well: pages need no MathJax, which Sphinx
# would have browsers load from elsewhere.
extensions = [
    "breathe",
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx_click",
    "sphinx_gallery.gen_gallery",
]
html_theme = "furo"
html_title = f"descramble_fast {version}"
html_copy_source = False
myst_heading_anchors = 3
smartquotes_action = "D"  # quotes stay as they are typed
default_role = "py:obj"  # `name` in a docstring: a link where it names something

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("dask", "torch") if find_spec(name) is None]
autodoc_typehints = "none"  # docstrings give types with their shapes
numpydoc_show_class_members = False  # autodoc does
# Types link to classes of this package; Python's own stay words, as their pages are elsewhere.
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = (
    {name: name for name in DEFAULT_LINKS}
    | {name: f"descramble_fast.{name}" for name in df.__all__ if name[0].isupper()}
    | {"Operator": "descramble_fast.operators.Operator"}
    | {
        name: f"descramble_fast.torch.{name}"
        for name in ("MemoryPlan", "Observation", "Permutable", "PermutableLayer", "PermutedModel")
    }
)

breathe_projects = {"descramble_fast": str(_XML)}
breathe_default_project = "descramble_fast"
breathe_domain_by_extension = {"h": "c", "hpp": "cpp"}

sphinx_gallery_conf = {
    "examples_dirs": str(_ROOT / "examples" / "gallery"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 1,
    "show_signature": False,
    "capture_repr": (),  # only what is printed
}

_DOXYGEN = f"""
INPUT = "{_ROOT}/cpp/include"
RECURSIVE = YES
STRIP_FROM_PATH = "{_ROOT}/cpp/include"
STRIP_FROM_INC_PATH = "{_ROOT}/cpp/include"
OUTPUT_DIRECTORY = "{_XML}"
XML_OUTPUT = .
GENERATE_XML = YES
GENERATE_HTML = NO
GENERATE_LATEX = NO
MACRO_EXPANSION = YES
EXPAND_ONLY_PREDEF = YES
PREDEFINED = DESCRAMBLE_API= DESCRAMBLE_FAST_EXPORT=
EXCLUDE_SYMBOLS = DESCRAMBLE_API
QUIET = YES
WARN_IF_UNDOCUMENTED = YES
WARN_FORMAT = "$file:$line: $text"
INHERIT_DOCS = YES
"""


def _read_headers(app: Sphinx) -> None:
    """Have Doxygen read the headers; whatever it finds undocumented is a warning of the build."""
    shutil.rmtree(_XML, ignore_errors=True)
    _XML.mkdir(parents=True)
    found = subprocess.run(
        ["doxygen", "-"], input=_DOXYGEN, text=True, capture_output=True, check=True
    )
    for line in found.stderr.splitlines():
        logging.getLogger(__name__).warning("doxygen: %s", line)


class Header(SphinxDirective):
    """Everything public of a header, in its order.

    Breathe's own ``doxygenfile`` sorts by kind, below a declaration of the namespace on every page.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Leave each class, function, enumeration and constant to breathe."""
        header = self.arguments[0]
        found = sorted(_public(header))
        if not found:
            raise self.error(f"{header}: nothing public is in it")
        structs = {name for _, kind, name in found if kind == "struct"}
        text = [
            f".. code-block:: cpp\n\n   #include <{header}>\n",
            f".. doxygenfile:: {Path(header).name}\n   :sections: detaileddescription\n",
        ]
        for _, kind, name in found:
            if kind == "typedef" and name in structs:
                continue  # C's name for the same
            members = "   :members:\n" if kind in ("class", "struct") else ""
            text.append(f".. doxygen{kind}:: {name}\n{members}")
        return self.parse_text_to_nodes("\n".join(text))


def _public(header: str) -> Iterator[tuple[int, str, str]]:
    """Line, kind and name, with a function's arguments, of what a header declares itself."""
    for file in _XML.glob("*.xml"):
        for compound in ElementTree.parse(file).iter("compounddef"):
            scope, kind = compound.findtext("compoundname", ""), compound.get("kind", "")
            if kind in ("class", "struct") and scope.count("::") < 2:
                entities, scope = [compound], ""
            elif kind in ("file", "namespace"):
                entities = list(compound.iter("memberdef"))
                scope = f"{scope}::" if kind == "namespace" else ""
            else:
                continue
            for entity in entities:
                place, kind = entity.find("location"), entity.get("kind", "")
                if place is None or place.get("file") != header:
                    continue
                name = entity.findtext("compoundname") or entity.findtext("name", "")
                if kind == "function":
                    types = ("".join(type_.itertext()) for type_ in entity.iterfind("param/type"))
                    name += f"({', '.join(types)})"
                yield int(place.get("line", 0)), kind, scope + name


def _no_constructors_of_results(
    app: Sphinx, what: str, name: str, found: Any, *_: object
) -> tuple[str, None] | None:
    """Leave the signatures of data classes out: the library makes them."""
    return ("", None) if what == "class" and dataclasses.is_dataclass(found) else None


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    app.add_directive("header", Header)
    app.connect("builder-inited", _read_headers, priority=0)
    app.connect("autodoc-process-signature", _no_constructors_of_results)
