"""Pages in a headless Chromium, spoken to over its DevTools protocol through two pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Chromium reads commands from file descriptor 3 and writes answers to 4.
_EXEC = """import fcntl, os, sys
reads, writes, *command = sys.argv[1:]
writes = fcntl.fcntl(int(writes), fcntl.F_DUPFD, 50)
os.dup2(int(reads), 3)
os.dup2(writes, 4)
os.execv(command[0], command)"""

BROWSERS = ("chromium", "google-chrome", "chromium-browser")


class Browser:
    """A tab of a running browser."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process, self._write, self._read = process, write, read
        self._number, self._rest, self._session = 0, b"", ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._ask("Page.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            some = os.read(self._read, 1 << 20)
            assert some, "the browser has ended"
            self._rest += some
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _ask(self, method: str, **options: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": options}
        if self._session:
            message["sessionId"] = self._session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._write, text) :]
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def show(self, path: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Opens a file in a window of this width in CSS pixels."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[theme])
        self._ask("Page.navigate", url=path.resolve().as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, or what its promise gives."""
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Writes the whole page as a PNG file."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def open_browser() -> Iterator[Browser | None]:
    """Yields a tab of a browser that ends with the context; None where there is no browser."""
    command = next(filter(None, map(shutil.which, BROWSERS)), None)
    if command is None:
        yield None
        return
    reads, we_write = os.pipe()
    we_read, writes = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _EXEC, str(reads), str(writes), command,
             "--headless=new", "--no-sandbox", "--disable-gpu",
             "--remote-debugging-pipe", "--hide-scrollbars", "--allow-file-access-from-files",
             f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        try:
            yield Browser(process, we_write, we_read)
        finally:
            process.terminate()
            process.wait()
            os.close(we_write)
            os.close(we_read)


_SCRIPT = """new Promise((done) => {
  const told = {};
  %s
  told.requests = performance.getEntriesByType("resource").map((r) => r.name)
    .filter((name) => !name.startsWith("data:"));
  told.wide = document.documentElement.scrollWidth - innerWidth;
  told.images = document.images.length;
  told.broken = [...document.images].filter((i) => !i.complete || !i.naturalWidth).length;
  told.figures = document.querySelectorAll("figure").length;
  done(told);
})"""


def told_by(content: str, script: str, folder: Path) -> dict[str, Any]:
    """What a script tells about a page that is 1,200 pixels wide; skips without a browser.

    Args:
      content: of the page.
      script: run after the page has loaded; what it puts into ``told`` is returned.
      folder: for the page.

    Returns:
      Beside what the script told: ``requests``, addresses that were fetched; ``wide``, by how many
      pixels the page is wider than the window; ``images``, and how many of them are ``broken``;
      the number of ``figures``.
    """
    import pytest

    path = folder / "page.html"
    path.write_text(content, encoding="utf-8")
    with open_browser() as browser:
        if browser is None:
            pytest.skip("not run: needs chromium")
        browser.show(path, 1200)
        told: dict[str, Any] = browser.run(_SCRIPT % script)
    return told
