"""Seconds in which Chromium opens a report with a large tree and expands a node of it.

    python -m benchmarks.report [--nodes N] [--screenshots DIR]

The report is made up: one exploration tree of N nodes, searches of all kinds and tables. Printed
are the seconds from the start of the navigation to the painted tree, and the milliseconds from the
click on a closed node to the painted branch (median and maximum over the closed nodes in view, and
for the root of the whole tree with every node open). On a busy machine compare the processor time.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.chromium import Chromium, find_chromium
from benchmarks.reports import write_made_up_report

_OPEN_LIMIT, _EXPAND_LIMIT = 1.0, 50.0

_EXPAND = """
(async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const canvas = document.querySelector("[role=tree]");
  const closed = [...canvas.querySelectorAll('.node[aria-expanded="false"]')];
  const names = closed.slice(0, 20).map((node) => node.id);
  const times = [];
  for (const name of names) {
    const node = document.getElementById(name);
    if (!node) continue;
    await frame();
    const began = performance.now();
    node.querySelector(".opener").click();
    await frame();
    times.push(performance.now() - began);
  }
  return times;
})()
"""

_ALL_OPEN = """
(async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const canvas = document.querySelector("[role=tree]");
  for (let i = 0; i < 4000; i++) { // opens what is closed from the top, by the keyboard's way
    const node = canvas.querySelector('.node[aria-expanded="false"] .opener');
    if (!node) {
      if (canvas.scrollTop + canvas.clientHeight >= canvas.scrollHeight - 2) break;
      canvas.scrollTop += canvas.clientHeight / 2;
      await frame();
      continue;
    }
    node.click();
  }
  canvas.scrollTo(0, 0);
  await frame();
  const times = [];
  for (let i = 0; i < 6; i++) {
    const root = canvas.querySelector(".node .opener");
    await frame();
    const began = performance.now();
    root.click();
    await frame();
    times.push(performance.now() - began);
  }
  return times;
})()
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000, help="nodes of the tree")
    parser.add_argument("--screenshots", type=pathlib.Path, help="folder for PNG files")
    given = parser.parse_args(arguments)
    if find_chromium() is None:
        print("no Chromium is installed")
        return 2
    with tempfile.TemporaryDirectory() as folder, Chromium() as browser:
        page = write_made_up_report(pathlib.Path(folder) / "demo", nodes=given.nodes)
        browser.resize(1280, 900)
        opened = sorted(browser.open(page) for _ in range(3))
        before = browser.cpu_seconds()
        expanded = sorted(browser.run(_EXPAND))
        cpu = 1000 * (browser.cpu_seconds() - before) / len(expanded)
        whole = sorted(browser.run(_ALL_OPEN))
        print(f"report of {given.nodes} nodes: {page.stat().st_size / 1e6:.1f} MB")
        print(f"opens in {opened[1]:.2f} s (limit {_OPEN_LIMIT:.0f} s)")
        print(
            f"expands a node in {expanded[len(expanded) // 2]:.0f} ms, at most {expanded[-1]:.0f} "
            f"ms (limit {_EXPAND_LIMIT:.0f} ms), {cpu:.0f} ms of processor time; "
            "the root, with all nodes open, in "
            f"{whole[len(whole) // 2]:.0f} ms, at most {whole[-1]:.0f} ms"
        )
        if browser.problems:
            print("\n".join(browser.problems))
        if given.screenshots:
            take_screenshots(browser, page, given.screenshots)
        slow = opened[1] > _OPEN_LIMIT or expanded[-1] > _EXPAND_LIMIT or whole[-1] > _EXPAND_LIMIT
        return 1 if slow or browser.problems else 0


def take_screenshots(browser: Chromium, page: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes PNG files of the tables and the viewer: wide and narrow, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, width, height, dark in (
        ("wide", 1280, 900, False), ("dark", 1280, 900, True),
        ("narrow", 390, 844, False), ("narrow-dark", 390, 844, True),
    ):  # fmt: skip
        browser.resize(width, height, dark=dark)
        browser.open(page)
        for section in browser.run("[...document.querySelectorAll('h2')].map((head) => head.id)"):
            browser.run(f"document.getElementById('{section}').scrollIntoView()")
            browser.screenshot(folder / f"{name}-{section}.png")
        browser.run(
            "document.getElementById('searches').scrollIntoView();"
            "[...document.querySelectorAll('[role=option]')].at(-1).click();"
            "document.querySelector('[data-part=both]').click()"
        )
        browser.screenshot(folder / f"{name}-two.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
