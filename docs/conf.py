"""How the documentation is built: `make docs`, with warnings as errors. Nothing is loaded from another host."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import gstalk

project = "gstalk"
author = "gstalk maintainers"
copyright = "gstalk maintainers; MIT license"
version = release = gstalk.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["README.md"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["config.cache"]

# The names of Python's and gevent's documentation that ours speaks of, as plain text, so that building it needs no
# network. A line is a name, its kind, and its page; a name that isn't there is shown without a link.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.txt"),
    "gevent": ("https://www.gevent.org/", "inventories/gevent.txt"),
}

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
html_favicon = "_static/icon.svg"
html_css_files = ["gstalk.css"]
html_js_files = ["gstalk.js"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "a11y-high-contrast-light"  # these two come with the theme
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
PAGES = HERE / "examples"  # made by every build, and kept out of the repository


def write_examples() -> None:
    """A page for each example, with all of its source: a program, or a folder of several files."""
    PAGES.mkdir(exist_ok=True)
    wanted: dict[str, list[Path]] = {}
    for path in sorted(EXAMPLES.rglob("*.py")):
        if path.read_text(encoding="utf-8").strip():
            wanted.setdefault(path.relative_to(EXAMPLES).parts[0].removesuffix(".py"), []).append(path)
    for page in PAGES.glob("*.md"):
        if page.stem not in wanted:
            page.unlink()
    for name, paths in wanted.items():
        page, text = PAGES / f"{name}.md", _example(name, paths)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _example(name: str, paths: list[Path]) -> str:
    parts = [f"# {name.replace('_', ' ').capitalize()}\n"]
    for path in paths:
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        inside = path.relative_to(EXAMPLES).as_posix()
        parts += [f"## {inside}\n"] if len(paths) > 1 else []
        parts += [re.sub(r"^Run: (.+)$", r"Run it: `\1`", said, flags=re.MULTILINE) + "\n"]
        parts += [f"```{{literalinclude}} ../../examples/{inside}\n:language: python\n```\n"]
    return "\n".join(parts)


def linked(docname: str, text: str) -> str:
    """Make links of the names of pages, examples and things in backticks, which on a forge are names and no more."""
    up = "../" * docname.count("/")

    def page(found: re.Match[str]) -> str:
        there = (HERE / f"{found[2]}.md").exists() and found[2] != docname
        return f"[{found[2].replace('_', ' ')}]({up}{found[2]}.md)" if there else found[0]

    def example(found: re.Match[str]) -> str:
        return f"[{found[1]}]({up}examples/{found[2]}.md)" if (PAGES / f"{found[2]}.md").exists() else found[0]

    text = re.sub(r"(?<!\[)(`docs/([a-z_]+)\.md`)", page, text)
    text = re.sub(r"(?<!\[)(`examples/([a-z_]+)(?:\.py|/)?`)", example, text)
    if docname == "examples":
        text = re.sub(r"^\| (`([a-z_]+)(?:\.py)?`) \|", lambda found: f"| {example(found)} |", text, flags=re.MULTILINE)
    return re.sub(r"(?<![\[`}\w])`([a-z]+(?:\.[A-Za-z_]+)+)(?:\(\))?`(?!`)", _thing, text)


def _thing(found: re.Match[str]) -> str:
    return f"{{py:obj}}`{found[1]}`" if found[1] in KNOWN else found[0]


KNOWN = {f"gstalk.{name}" for name in gstalk.__all__} | {
    line.split()[0]
    for kind in ("python", "gevent")
    for line in (HERE / f"inventories/{kind}.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
}


def setup(app: Any) -> None:
    write_examples()
    app.connect("source-read", of_page)
    app.connect("include-read", of_include)


def of_page(app: Any, docname: str, source: list[str]) -> None:
    if (HERE / f"{docname}.md").exists():
        source[0] = linked(docname, source[0])


def of_include(app: Any, path: Path, docname: str, content: list[str]) -> None:
    if Path(path).suffix == ".md":
        content[0] = linked(docname, content[0])
