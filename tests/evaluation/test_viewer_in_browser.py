"""The report in headless Chromium: its scripts, keys, themes, and what must not run."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import pytest
from report_cases import episodes, task, tree

from agentrm_jax.evaluation.report import ReportPage, write_report
from agentrm_jax.evaluation.results import comparisons, result_rows
from agentrm_jax.evaluation.searches import Search, tree_search
from agentrm_jax.evaluation.viewer import make_viewer, tree_answer
from agentrm_jax.search.search_nodes import SearchNode
from benchmarks.chromium import Chromium, find_chromium
from benchmarks.reports import write_made_up_report

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")

EVIL = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'> \u2028 <b>x"
TREE = "document.querySelector('[role=tree]')"
AT = f"document.getElementById({TREE}.getAttribute('aria-activedescendant'))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as started:
        started.resize(1280, 900)
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return write_made_up_report(folder, nodes=800, tasks=12)


@pytest.fixture
def opened(browser: Chromium, page: pathlib.Path) -> Iterator[Chromium]:
    browser.problems.clear()
    browser.open(page)
    yield browser
    assert browser.problems == []


def test_a_large_tree_is_drawn_in_part(opened: Chromium) -> None:
    drawn = opened.run(f"{TREE}.querySelectorAll('[role=treeitem]').length")
    assert 5 < drawn < 120
    facts = opened.run("document.querySelector('.facts').textContent")
    assert int(facts.split()[0]) >= 800
    opened.run(f"{TREE}.scrollTo(0, 1e6)")
    opened.painted()
    assert opened.run(f"{TREE}.querySelectorAll('[role=treeitem]').length") < 120


def test_keys_move_open_and_read(opened: Chromium) -> None:
    opened.run(f"{TREE}.focus()")
    assert opened.run(f"{AT}.getAttribute('aria-level')") == "1"
    opened.press("ArrowRight")
    assert opened.run(f"{AT}.getAttribute('aria-level')") == "2"
    assert opened.run(f"{AT}.getAttribute('aria-posinset')") == "1"
    opened.press("ArrowDown")
    assert opened.run(f"{AT}.getAttribute('aria-posinset')") == "2"
    action = opened.run(f"{AT}.title")
    assert opened.run("document.querySelector('.text h4').textContent") == action
    opened.press("Enter")
    assert opened.run("document.activeElement.className") == "text"
    opened.run(f"{TREE}.focus()")
    opened.press("ArrowUp")
    opened.press("ArrowLeft")
    assert opened.run(f"{AT}.getAttribute('aria-level')") == "1"
    opened.press(" ")
    assert opened.run(f"{AT}.getAttribute('aria-expanded')") == "false"
    assert opened.run(f"{TREE}.querySelectorAll('[role=treeitem]').length") == 1
    opened.press(" ")
    assert opened.run(f"{AT}.getAttribute('aria-expanded')") == "true"


def test_a_box_stands_right_of_its_parent_and_no_two_overlap(opened: Chromium) -> None:
    boxes = opened.run(
        f"[...{TREE}.querySelectorAll('.node')].map((n) => [n.offsetLeft, n.offsetTop, "
        "n.offsetWidth, n.offsetHeight, Number(n.getAttribute('aria-level'))])"
    )
    columns = {level: {x for x, *_, own in boxes if own == level} for *_, level in boxes}
    assert all(len(xs) == 1 for xs in columns.values())
    firsts = [min(columns[level]) for level in sorted(columns)]
    assert firsts == sorted(set(firsts))
    for i, (x, y, width, height, _) in enumerate(boxes):
        for x2, y2, *_ in boxes[i + 1 :]:
            assert abs(x - x2) >= width or abs(y - y2) >= height


def test_tasks_are_filtered_and_chosen_by_keys(opened: Chromium) -> None:
    count = "document.querySelector('[data-part=count]').textContent"
    assert opened.run(count) == "24 of 24 tasks"
    opened.run(
        "{const e = document.querySelector('[data-part=environment]'); e.value = 'maze';"
        "e.dispatchEvent(new Event('change'))}"
    )
    assert opened.run(count) == "8 of 24 tasks"
    opened.run(
        "{const t = document.querySelector('[data-part=text]'); t.value = 'test MAZE';"
        "t.dispatchEvent(new Event('input'))}"
    )
    assert opened.run(count) == "4 of 24 tasks"
    opened.run("document.querySelector('[role=listbox]').focus()")
    opened.press("End")
    title = "document.querySelector('[data-part=title]').textContent"
    last = "[...document.querySelectorAll('[role=option] .name')].at(-1).textContent"
    assert opened.run(title) == opened.run(last)
    opened.press("ArrowUp")
    assert opened.run(title) != opened.run(last)


def test_two_searches_stand_side_by_side(opened: Chromium) -> None:
    opened.run("[...document.querySelectorAll('[role=option]')].at(-1).click()")
    opened.run("document.querySelector('[data-part=both]').click()")
    opened.painted()
    chosen = "[...document.querySelectorAll('.pane-head select:first-child')].map((s) => s.value)"
    first, second = opened.run(chosen)
    assert first != second
    lefts = opened.run("[...document.querySelectorAll('.canvas')].map((c) => c.offsetLeft)")
    assert lefts[0] < lefts[1]
    assert opened.run("document.querySelectorAll('.canvas')[1].querySelector('.chosen') !== null")


def test_the_chosen_path_follows_the_reward_model(opened: Chromium) -> None:
    """Two reward models choose among the same samples."""
    opened.run("[...document.querySelectorAll('[role=option]')].at(-1).click()")
    paths = {}
    for model in ("explicit", "implicit"):
        opened.run(
            "{const s = document.querySelector('.pane-head select:nth-child(2)');"
            f"s.value = '{model}'; s.dispatchEvent(new Event('change'))}}"
        )
        opened.painted()
        paths[model] = opened.run("[...document.querySelectorAll('.node.chosen')].map((n) => n.id)")
    assert all(len(path) >= 2 for path in paths.values())


def test_tables_are_sorted_within_their_groups(opened: Chromium) -> None:
    opened.run("[...document.querySelectorAll('#methods thead button')].at(5).click()")
    bodies = opened.run(
        "[...document.querySelectorAll('#methods tbody')].map((body) => [...body.rows]"
        ".filter((row) => !row.classList.contains('group'))"
        ".map((row) => Number(row.cells[5].dataset.value)))"
    )
    assert [body for body in bodies if len(body) > 1]
    for body in bodies:
        assert body == sorted(body, reverse=True)


def test_the_theme_follows_the_system_and_the_switch(opened: Chromium) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(paper)
    opened.resize(1280, 900, dark=True)
    dark = opened.run(paper)
    assert light != dark
    opened.run("document.getElementById('theme').click()")
    assert opened.run(paper) == light
    opened.run("try { localStorage.clear() } catch {}")
    opened.resize(1280, 900)


def test_a_narrow_window_scrolls_in_one_direction(browser: Chromium, page: pathlib.Path) -> None:
    browser.resize(390, 844)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.resize(1280, 900)


def test_a_deep_tree_is_drawn(browser: Chromium, tmp_path: pathlib.Path) -> None:
    nodes = [SearchNode(parent=-1)]
    for level in range(1500):
        above = 2 * level - 1 if level else 0
        nodes += [SearchNode(parent=above, action=f"act {level}", chosen=True)]
        nodes += [SearchNode(parent=above, action="other", status="removed")]
    searches = [Search(task=task(), label="deep", nodes=tuple(nodes))]
    viewer = make_viewer([], searches)
    browser.problems.clear()
    browser.open(write_report(tmp_path / "run", {}, ReportPage(viewer=viewer)))
    browser.run(f"{TREE}.focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.run(f"{AT}.title") == "act 1"
    assert browser.run(f"{TREE}.scrollWidth") > 1500 * 150
    assert browser.run(f"{TREE}.querySelectorAll('.node').length") < 60
    assert browser.problems == []


def test_hostile_texts_stay_text(browser: Chromium, tmp_path: pathlib.Path) -> None:
    made = [
        dataclasses.replace(e, task=dataclasses.replace(e.task, environment=EVIL), error=EVIL)
        for e in episodes(1)
    ]
    searches = [tree_search(tree(EVIL))]
    viewer = make_viewer(map(tree_answer, searches), searches)
    parts = {"results": result_rows(made), "comparisons": comparisons(made), "notes": [EVIL]}
    browser.problems.clear()
    browser.open(write_report(tmp_path / "run", parts, ReportPage(viewer=viewer)))
    browser.press("Tab")
    assert browser.run("window.hurt") is None
    assert browser.run("document.images.length") == 0
    assert "window.hurt = 1" in browser.run("document.body.innerText")
    assert browser.problems == []
    # The policy refuses any other script, also one that gets into the page later.
    browser.run(
        "{const s = document.createElement('script'); s.textContent = 'window.hurt = 3';"
        "document.body.append(s)}"
    )
    assert browser.run("window.hurt") is None
