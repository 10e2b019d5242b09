"""Builds the pages of the documentation into ``site/`` and checks their links; see `make docs`.

The pages are README.md, the Markdown files beside it and below ``docs/``, the notebook, and one API
page for each module, which pdoc makes from the docstrings.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import markdown2
import pdoc

import finetune_jax
from finetune_jax.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "docs/*.ipynb")
EXTRAS = {"tables": None, "fenced-code-blocks": None, "header-ids": None, "code-friendly": None}
STYLE = """
body { max-width: 60rem; margin: 1rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto } pre.output { background: none }
code { font-size: .9em } img { max-width: 100% } nav a { margin-right: 1rem }
table { border-collapse: collapse } th, td { border: 1px solid #ddd; padding: .2rem .5rem }
"""


def build(site: Path) -> list[str]:
    """Writes all pages; returns a line for every broken link."""
    shutil.rmtree(site, ignore_errors=True)
    sources = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    for source in sources:
        page = site / _page(source.relative_to(ROOT))
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_render(source, sources))
    _copy_linked_files(site)
    # The modules of commands define flags at import, some of the same name.
    commands = [f"!finetune_jax.{c}" for c in COMMANDS if (ROOT / f"finetune_jax/{c}.py").exists()]
    # The package gives the names of its API on demand; pdoc sees those that are there.
    vars(finetune_jax).update({name: getattr(finetune_jax, name) for name in finetune_jax.__all__})
    pdoc.render.configure(docformat="google", search=False)
    pdoc.pdoc("finetune_jax", "!finetune_jax.configs", *commands, output_directory=site / "api")
    return broken_links(site)


def _page(path: Path) -> Path:
    if path.name == "README.md" and path.parent == Path():
        return Path("index.html")
    return path.with_suffix(".html") if path.suffix in (".md", ".ipynb") else path


def _render(source: Path, sources: list[Path]) -> str:
    text = source.read_text()
    if source.suffix == ".ipynb":
        text = _markdown_of_notebook(json.loads(text))
    body = markdown2.markdown(text, extras=EXTRAS)
    body = re.sub(r'href="([^"#:]+)', lambda m: f'href="{_target(m[1], source)}', body)
    up = "../" * (len(source.relative_to(ROOT).parts) - 1)
    pages = [_page(path.relative_to(ROOT)) for path in sources]
    links = [f'<a href="{up}{page}">{page.stem}</a>' for page in pages]
    links.append(f'<a href="{up}api/finetune_jax.html">API</a>')
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{source.stem}</title>'
        f"<style>{STYLE}</style><nav>{' '.join(links)}</nav>\n{body}</html>\n"
    )


def _target(link: str, source: Path) -> str:
    """A link to a Markdown file of the repository as a link to the page of the file."""
    path = (source.parent / link).resolve()
    if not path.is_relative_to(ROOT):
        return link
    page = _page(path.relative_to(ROOT))
    is_page = any(path in ROOT.glob(pattern) for pattern in PAGES)
    return link.removesuffix(path.name) + page.name if is_page else link


def _markdown_of_notebook(notebook: dict) -> str:
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            lines = output.get("text") or output["data"]["text/plain"]
            parts.append(f'<pre class="output">{html.escape("".join(lines))}</pre>')
    return "\n\n".join(parts)


def _copy_linked_files(site: Path) -> None:
    """Copies images and other files of the repository that a page links to."""
    for page in [*site.rglob("*.html")]:
        for link in _Links(page).links:
            path = _file(page, link)
            source = ROOT / path.relative_to(site) if path.is_relative_to(site) else None
            if source and source.is_file() and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, path)


class _Links(HTMLParser):
    """The links of a page, and the places of the page that a link may name."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects ids, and the targets of links and images."""
        values = dict(attrs)
        self.ids.update(v for k, v in attrs if k in ("id", "name") and v)
        link = values.get("href") if tag == "a" else values.get("src")
        if link and not urlsplit(link).scheme and not link.startswith("//"):
            self.links.append(link)


def _file(page: Path, link: str) -> Path:
    name = unquote(urlsplit(link).path)
    return (page.parent / name).resolve() if name else page.resolve()


def broken_links(site: Path) -> list[str]:
    """A line for every link in a site that leads to no file, or to no place of its page."""
    site = site.resolve()
    pages = {page: _Links(page) for page in sorted(site.rglob("*.html"))}
    broken = []
    for page, found in pages.items():
        for link in dict.fromkeys(found.links):
            path, place = _file(page, link), unquote(urlsplit(link).fragment)
            missing = place and path in pages and place not in pages[path].ids
            if not path.exists() or missing:
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


if __name__ == "__main__":
    broken = build(ROOT / "site")
    print(*(f"broken link in {line}" for line in broken), sep="\n")
    print(f"{ROOT / 'site' / 'index.html'}: {len(broken)} broken links")
    sys.exit(bool(broken))
