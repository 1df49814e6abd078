"""A page in a headless browser at several widths: what is cut, missing, of one colour, or an error."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEIGHT = 2000

# Runs in the page when it is laid out, with every fold open, and posts what it found to the page around it.
PROBE = """<script>
const errors = [];
addEventListener("error", e => errors.push(e.message));
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const name = e => e.tagName + (e.id ? "#" + e.id : "") + " " + e.textContent.trim().slice(0, 40);
  const cut = [], scrolling = [], colours = [], drawn = [];
  for (const e of document.body.querySelectorAll("*")) {
    if (e.closest("svg") && e.tagName !== "svg") continue;
    const box = e.getBoundingClientRect(), outer = e.parentElement.closest(".scroll");
    if (!box.width) continue;
    const caption = e.parentElement.tagName === "CAPTION";
    const right = outer ? outer.getBoundingClientRect().right : document.documentElement.clientWidth;
    if ((!outer || caption) && (box.right > right + 1 || box.left < -1)) cut.push(name(e));
    const words = e.clientWidth && e.scrollWidth > e.clientWidth && !e.querySelector("*");
    if (!outer && words && box.left + e.scrollWidth > right + 1) cut.push(name(e));
    const hides = getComputedStyle(e).overflowX !== "visible" && !e.matches(".scroll") || e.tagName === "TD";
    if (hides && e.tagName !== "svg" && e.scrollWidth > e.clientWidth + 1) cut.push(name(e));
  }
  for (const e of document.querySelectorAll(".scroll")) {
    if (e.scrollWidth <= e.clientWidth + 1) continue;
    const style = getComputedStyle(e);
    const shows = style.overflowX === "auto" && style.backgroundImage.includes("gradient");
    scrolling.push([name(e), shows]);
  }
  for (const svg of document.querySelectorAll("figure svg")) {
    const view = svg.viewBox.baseVal, box = svg.querySelector("g").getBBox();
    const right = box.x + box.width, bottom = box.y + box.height;
    const inside = box.x > -1 && box.y > -1 && right < view.width + 1 && bottom < view.height + 1;
    const rows = {};
    for (const g of svg.querySelectorAll('[id*=".row-"]')) {
      const row = /[.]row-(\\d+)-/.exec(g.id), path = g.querySelector("path");
      if (row && path) rows[row[1]] = getComputedStyle(path).stroke;
    }
    const strokes = Object.values(rows);
    if (new Set(strokes).size < strokes.length) colours.push(svg.closest("figure").id);
    drawn.push([svg.closest("figure").id, svg.getBoundingClientRect().width / view.width, inside, strokes.length]);
  }
  const overflow = document.documentElement.scrollWidth - innerWidth;
  parent.postMessage({width: innerWidth, overflow, cut, scrolling, colours, drawn, errors}, "*");
});
</script></body>"""
AROUND = """<!doctype html><body style="margin:0">{frames}<pre id="found"></pre><script>
const found = [];
addEventListener("message", e => {{
  found.push(e.data);
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script></body>"""


def look_at(page: str, folder: Path, widths: tuple[int, ...]) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """What the probe found at each width, and the console's lines."""
    (folder / "page.html").write_text(page.replace("</body>", PROBE))
    # A window is never narrower than 500 pixels, a frame is.
    frames = "".join(
        f'<iframe src="page.html" width="{w}" height="{HEIGHT}" style="border:0"></iframe>' for w in widths
    )
    (folder / "around.html").write_text(AROUND.format(frames=frames))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--window-size=1400,900"]
    command += ["--dump-dom", (folder / "around.html").as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    told = re.search(r'<pre id="found">(.*?)</pre>', ran.stdout, re.DOTALL)
    found = json.loads(html.unescape(told[1])) if told and told[1] else []
    return {one["width"]: one for one in found}, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
