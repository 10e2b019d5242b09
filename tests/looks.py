"""Finds what is wrong with the look of a page, at four widths and in both themes.

  python tests/looks.py PAGE.html … [--screenshots=DIR]

Reports what is wider than its card or the page, hidden columns that nothing names, text boxes that
overlap, text smaller than 11 CSS pixels, text without contrast, and figures that leave much of
their card empty.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from browser import Browser, open_browser

WIDTHS = (1440, 1200, 800, 390)

_LOOK = r"""(() => {
  const found = [];
  const page = document.documentElement;
  const name = (text) => JSON.stringify(text.trim().replace(/\s+/g, " ").slice(0, 40));
  const seen = (e) => e.checkVisibility({ visibilityProperty: true });
  if (page.scrollWidth > innerWidth)
    found.push(`overflow: page by ${page.scrollWidth - innerWidth}`);

  // Boxes of elements inside their card; what scrolls may be wider, if a cue names it.
  const card = (e) => e.closest("section, .card, header, footer");
  for (const e of document.querySelectorAll("body *")) {
    if (!seen(e) || e.closest("svg") && e.tagName !== "svg") continue;
    const box = e.closest(".scroll");
    if (box === e) {
      const hidden = e.scrollWidth > e.clientWidth + 1;
      const cue = e.previousElementSibling?.textContent ?? "";
      if (hidden && !cue.includes("columns"))
        found.push(`hidden columns without a cue: ${name(e.textContent)}`);
    }
    if (box && box !== e) continue;
    const outer = card(e);
    if (!outer || outer === e) continue;
    const r = e.getBoundingClientRect(), o = outer.getBoundingClientRect();
    if (r.width && (r.right > o.right + 1 || r.left < o.left - 1))
      found.push(`overflow: ${e.tagName} ${name(e.textContent)} by ${r.right - o.right}`);
    if (getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1
        && e !== box && e.tagName !== "svg")
      found.push(`clipped: ${e.tagName} ${name(e.textContent)}`);
  }

  // Text: one box for each line of each text node.
  const texts = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode());) {
    const parent = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE"].includes(parent.tagName)) continue;
    if (!seen(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const style = getComputedStyle(parent), svg = parent.closest("svg");
    const scale = svg ? svg.getScreenCTM().a : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < 10.95) found.push(`small: ${size.toFixed(1)} px ${name(node.data)}`);
    const colour = (svg ? style.fill : style.color).match(/[\d.]+/g).map(Number);
    let boxes = [...range.getClientRects()];
    if (svg) {
      const all = svg.getBoundingClientRect(), own = parent.closest("text").getBoundingClientRect();
      // The box of SVG text has the height of its font; the letters have less.
      const upright = own.height <= own.width || node.data.trim().length < 3;
      const trim = 0.2 * size;
      boxes = [upright ? new DOMRect(own.x, own.y + trim, own.width, own.height - 2 * trim)
                       : new DOMRect(own.x + trim, own.y, own.width - 2 * trim, own.height)];
      if (own.left < all.left - 2 || own.right > all.right + 2 || own.top < all.top - 2
          || own.bottom > all.bottom + 2)
        found.push(`clipped: ${name(node.data)} in a figure`);
    }
    let box = parent.closest(".scroll");
    let limit = box ? box.getBoundingClientRect() : null;
    const sticky = Boolean(parent.closest("thead") || parent.closest("td")?.cellIndex === 0);
    for (const b of boxes) if (b.width > 0.5 && b.height > 0.5 &&
        !(limit && (b.left > limit.right || b.top > limit.bottom || b.bottom < limit.top)))
      texts.push({ b, text: node.data, owner: svg ? parent.closest("text") : parent, sticky, box });
  }
  texts.sort((p, q) => p.b.top - q.b.top);
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length && texts[j].b.top < texts[i].b.bottom; j++) {
      const p = texts[i], q = texts[j];
      if (p.owner === q.owner || (p.box && p.box === q.box && p.sticky !== q.sticky)) continue;
      const x = Math.min(p.b.right, q.b.right) - Math.max(p.b.left, q.b.left);
      const y = Math.min(p.b.bottom, q.b.bottom) - Math.max(p.b.top, q.b.top);
      if (x > 1 && y > 2) found.push(`overlap: ${name(p.text)} and ${name(q.text)}`);
    }

  for (const figure of document.querySelectorAll("figure")) {
    const svg = [...figure.querySelectorAll("svg")].find(seen);
    if (!svg) continue;
    const share = svg.getBoundingClientRect().width / figure.parentElement.clientWidth;
    const inside = figure.closest(".pair") ? 0.6 : 0.7;
    if (share < inside) found.push(`empty: a figure fills ${share.toFixed(2)} of its place`);
  }

  // Contrast of text with what is behind it, by the formula of WCAG 2.
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92
    : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = (text) => text.match(/[\d.]+/g).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.9) return c; } return [255, 255, 255]; };
  for (const t of texts) {
    if (t.owner.closest("svg")) continue;
    const a = light(parse(getComputedStyle(t.owner).color)), b = light(behind(t.owner));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(1)}: ${name(t.text)}`);
  }
  return [...new Set(found)];
})()"""


def faults(browser: Browser, page: Path, screenshots: Path | None = None) -> list[str]:
    """What is wrong with a page, each with width and theme.

    Args:
      browser: the browser.
      page: path of the HTML file.
      screenshots: folder for a picture of the page at each width and in each theme.
    """
    found = []
    for width in WIDTHS:
        for dark in (False, True):
            browser.show(page, width, dark=dark)
            theme = "dark" if dark else "light"
            if screenshots:
                browser.screenshot(screenshots / f"{page.stem}_{width}_{theme}.png")
            browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            browser.run("new Promise((done) => setTimeout(done, 50))")
            found += [f"{width} px, {theme}: {fault}" for fault in browser.run(_LOOK)]
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--screenshots", type=Path)
    given = parser.parse_args()
    if given.screenshots:
        given.screenshots.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        if browser is None:
            print("not run: needs chromium")
            return 2
        wrong = 0
        for page in given.pages:
            found = faults(browser, page, given.screenshots)
            wrong += len(found)
            count = {k: sum(f": {k}" in x for x in found) for k in ("overflow", "overlap")}
            print(f"{page}: {count['overflow']} overflows, {count['overlap']} overlaps, "
                  f"{len(found)} faults in all")  # fmt: skip
            print("".join(f"  {line}\n" for line in found), end="")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
