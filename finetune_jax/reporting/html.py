"""Parts of a self-contained HTML page: it loads nothing from elsewhere, and all text is escaped."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_jax.reporting.fonts import reads_from_the_right
from finetune_jax.tables import shown

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1f2933; --soft: #52606d; --faint: #9aa5b1; --line: #e4e7eb; --paper: #ffffff;
  --back: #f5f7fa; --head: #f0f3f7; --hover: #f0f5fa; --main: #1f6fb2; --second: #c4660f;
  --warn: #b3362b; --good: #2d7a4b; --shade: rgba(31, 41, 51, 0.16); }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6ebf0; --soft: #a8b4c0; --faint: #71808e; --line: #35404b; --paper: #1b2229;
  --back: #12171c; --head: #252e37; --hover: #222b34; --main: #62aeea; --second: #f0a255;
  --warn: #ff8f80; --good: #74d19b; --shade: rgba(0, 0, 0, 0.55); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 1104px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; overflow-wrap: anywhere; }
.result { font-size: 17px; margin: 8px 0; max-width: 78ch; overflow-wrap: anywhere; }
.lead { color: var(--soft); margin: 0; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 8px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px; min-width: 150px; overflow-wrap: anywhere; }
.card b { display: block; font-size: 23px; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 12px 0 4px; font-size: 14px; }
a { color: var(--main); text-decoration: none; } a:hover { text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  padding: 20px 24px; margin: 16px 0; }
section > p { color: var(--soft); margin: 0 0 14px; max-width: 78ch; overflow-wrap: anywhere; }
section li { overflow-wrap: anywhere; }
figure { margin: 8px 0 12px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure .narrow { display: none; }
.pair { display: flex; flex-wrap: wrap; gap: 16px 20px; align-items: flex-start; }
.pair > div { flex: 1 1 380px; min-width: 0; max-width: 100%; }
.pair > div.beside { flex: 3 1 500px; }
.table { margin: 0 0 12px; }
.scroll { overflow: auto; max-height: 420px; border: 1px solid var(--line); border-radius: 6px; }
.cue { color: var(--soft); font-size: 13px; margin: 0 0 4px; }
.cue:empty { display: none; }
.scroll.more { box-shadow: inset -14px 0 10px -10px var(--shade); }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.scroll table { width: 100%; }
th, td { padding: 5px 12px; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
td.words { white-space: normal; overflow-wrap: anywhere; min-width: 120px; }
tbody tr:last-child td { border-bottom: 0; } tbody tr:hover { background: var(--hover); }
td.n, th.n { text-align: right; }
td.path { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px; }
thead th { position: sticky; top: 0; background: var(--head); padding: 0; font-weight: 600; }
th button { all: unset; cursor: pointer; display: block; width: 100%; padding: 6px 12px;
  box-sizing: border-box; }
th button:focus-visible { outline: 2px solid var(--main); outline-offset: -2px; }
th button::after { content: "\\2195"; color: var(--faint); margin-left: 6px; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: var(--main); }
th[aria-sort=descending] button::after { content: "\\2193"; color: var(--main); }
.mistakes { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.mistakes.texts { grid-template-columns: 1fr; gap: 8px; }
.mistake { font-size: 13px; line-height: 1.4; overflow-wrap: anywhere; }
.mistake img { width: 100%; max-width: 220px; border-radius: 4px; display: block;
  margin-bottom: 6px; }
.mistake img.small { image-rendering: pixelated; }
.mistake blockquote { margin: 0 0 4px; padding: 6px 12px; border-left: 3px solid var(--line);
  font-size: 14px; }
.mistake .wrong { color: var(--warn); } .mistake .right { color: var(--good); }
.mistake .where { color: var(--soft); font-size: 12px; }
details { margin-top: 8px; } summary { cursor: pointer; color: var(--main); }
pre { font-size: 12.5px; background: var(--back); padding: 12px; border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre > span { display: inline-block; max-width: 100%; }
.mistakes + p { margin-top: 16px; }
footer { color: var(--soft); font-size: 13px; padding-bottom: 32px; }
/* Below this width the text of the wide form of a figure would be smaller than 11 pixels. */
@media (max-width: 779px) {
  figure .wide { display: none; } figure .narrow { display: block; }
  header, main, footer { padding: 0 12px; } header { padding-top: 20px; }
  section > table, .pair > div > table { width: 100%; }
  section > table th, section > table td { white-space: normal; padding: 5px 6px; }
  section > table th button { padding: 6px; }
  section { padding: 16px 14px; } .card { flex: 1 1 150px; min-width: 0; }
}
@media print { body { background: none; } .scroll { max-height: none; } nav { display: none; } }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending", column = head.cellIndex;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const figure = (text) => parseFloat(text.replaceAll(",", ""));
    const compare = (a, b) => {
      const x = value(a), y = value(b), p = figure(x), q = figure(y);
      if (head.classList.contains("n")) {
        // Cells without a number are last in both directions.
        if (isNaN(p) || isNaN(q)) return isNaN(p) - isNaN(q);
        return up ? p - q : q - p;
      }
      return up ? x.localeCompare(y) : y.localeCompare(x);
    };
    body.append(...[...body.rows].sort(compare));
  });
}
// Says which columns and how many rows of a table are outside its box.
for (const box of document.querySelectorAll(".scroll")) {
  const cue = box.previousElementSibling, table = box.firstElementChild;
  const say = () => {
    const edge = box.getBoundingClientRect().left + box.clientLeft + box.clientWidth + 1;
    const names = [...table.tHead.rows[0].cells].filter(
      (cell) => cell.getBoundingClientRect().right > edge).map((cell) => cell.textContent);
    const below = box.scrollHeight > box.clientHeight + 1;
    const parts = names.length ? ["further columns at the right: " + names.join(", ")] : [];
    if (below) parts.push(table.tBodies[0].rows.length + " rows");
    cue.textContent = parts.length ? "Scroll the table for " + parts.join("; ") + "." : "";
    box.classList.toggle("more", names.length > 0);
    if (parts.length) box.tabIndex = 0;
  };
  new ResizeObserver(say).observe(box);
  box.addEventListener("scroll", say, { passive: true });
  box.closest("details")?.addEventListener("toggle", say);
  say();
}
"""

# The browser does not fetch anything, even if a part of the page refers to another address.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def text(value: Any) -> str:
    """Returns escaped text; `shown` writes its control characters as escapes, too."""
    return html.escape(shown(value, lines=True), quote=True)


def name(value: Any) -> str:
    """Returns escaped `text` that keeps its direction of writing to itself, such as an Arabic name.

    For the text of an element, not for an attribute.
    """
    escaped = text(value)
    return f"<bdi>{escaped}</bdi>" if reads_from_the_right(escaped) else escaped


def number(value: Any, digits: int = 4) -> str:
    """Formats a number: integers in full, floats rounded, undefined values as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}g}"
    return f"{value:.{digits}f}"


def page(title: str, header: str, sections: Sequence[tuple[str, str]], footer: str) -> str:
    """Returns the complete document.

    Args:
      title: plain text.
      header: HTML under the title.
      sections: (plain heading, HTML) of each section; the page links to each.
      footer: HTML.
    """
    anchors = [f'<a href="#s{i}">{text(heading)}</a>' for i, (heading, _) in enumerate(sections, 1)]
    parts = [
        f'<section id="s{i}"><h2>{name(heading)}</h2>{body}</section>'
        for i, (heading, body) in enumerate(sections, 1)
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f"<header><h1>{name(title)}</h1>{header}<nav>{''.join(anchors)}</nav></header>\n<main>"
        + "\n".join(parts)
        + f"</main>\n<footer>{footer}</footer><script>{_SCRIPT}</script></body></html>\n"
    )


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    numeric: Sequence[int] = (),
    paths: Sequence[int] = (),
    words: Sequence[int] = (),
    scroll: bool = True,
) -> str:
    """Returns a table; a click on a column name sorts the rows.

    Args:
      header: column names.
      rows: values; floats are shown rounded and sorted by their exact value.
      numeric: indices of columns of numbers, which are aligned to the right.
      paths: indices of columns in a fixed-width font.
      words: indices of columns of long texts, which are broken into lines.
      scroll: whether a long or wide table has its own scroll bar, with a line that names the
        columns that it hides.
    """

    def cell(value: Any, column: int) -> str:
        kinds = ["n"] * (column in numeric) + ["path"] * (column in paths)
        kinds += ["words"] * (column in words)
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        if column not in numeric or isinstance(value, str):
            shown = name(number(value) if isinstance(value, bool) else value)
            if column in words and "<" not in shown:
                shown = re.sub("([_=/,(|+])", r"\1<wbr>", shown)  # where a line may end
            if column in numeric:  # an interval has a line of its own
                shown = re.sub(r" (\[.*)$", r" <small>\1</small>", shown)
            return f"<td{kind}>{shown}</td>"
        exact = "" if value is None else f' data-value="{float(value)!r}"'
        return f"<td{kind}{exact}>{number(value)}</td>"

    heads = [
        f'<th scope="col"{" class=n" if i in numeric else ""}>'
        f'<button type="button">{text(name).replace("/", "/<wbr>")}</button></th>'
        for i, name in enumerate(header)
    ]
    body = ["<tr>" + "".join(cell(v, i) for i, v in enumerate(row)) + "</tr>" for row in rows]
    complete = (
        f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
    if not scroll:
        return complete
    return f'<div class="table"><p class="cue"></p><div class="scroll">{complete}</div></div>'


def figure(drawn: str, alternative: str) -> str:
    """Returns a figure of `reporting.style` with the text that stands for it."""
    return f'<figure role="img" aria-label="{text(alternative)}">{drawn}</figure>'


def command(words: str, line: str) -> str:
    """Returns a command line to copy, after the words that say what it does."""
    # A line ends between two words and not at a hyphen, unless a word is wider than the page.
    parts = " ".join(f"<span>{text(word)}</span>" for word in line.split(" "))
    return f"<p>{text(words)}</p><pre>{parts}</pre>"


def picture(pixels: np.ndarray, alternative: str, side: int = 300) -> str:
    """Returns pixels uint8[height, width, 3] as an image element of at most `side` pixels."""
    from PIL import Image

    image = Image.fromarray(np.asarray(pixels, np.uint8))
    small = max(image.size) <= 96
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "PNG") if small else image.convert("RGB").save(file, "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    data = base64.b64encode(file.getvalue()).decode()
    style = ' class="small"' if small else ""
    return f'<img{style} alt="{text(alternative)}" src="data:image/{kind};base64,{data}">'
