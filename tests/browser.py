"""A page in a headless browser."""

import html
import json
import re
import shutil
import subprocess

import pytest

_SCRIPT = """<script>
  const told = {};
  %s
  told.requests = performance.getEntriesByType("resource").map((r) => r.name)
    .filter((name) => !name.startsWith("data:"));
  told.wide = document.documentElement.scrollWidth - innerWidth;
  addEventListener("load", () => {
    told.images = document.images.length;
    told.broken = [...document.images].filter((i) => !i.complete || !i.naturalWidth).length;
    document.title = JSON.stringify(told);
  });
</script></body>"""


def told_by(content: str, script: str, folder) -> dict:
    """The result of a script in a page that is 1,200 pixels wide; skips without a browser.

    Args:
      content: HTML of the page.
      script: runs at the end of the body; the entries that it adds to ``told`` are returned.
      folder: folder for the files of the page and of the browser.

    Returns:
      The entries of ``told``, and ``requests``, addresses that were fetched; ``wide``, by how many
      pixels the page is wider than the window; ``images``, the number of images; and ``broken``,
      the number of images that were not loaded.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("not run: needs chromium")
    path = folder / "page.html"
    path.write_text(content.replace("</body>", _SCRIPT % script))
    process = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
         path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", process.stdout, re.S)
    assert title and title[1].startswith("{"), process.stderr[-2000:]
    return json.loads(html.unescape(title[1]))
