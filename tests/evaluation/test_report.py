"""The report: whole, self-contained, and proof against what environments write."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import io
import json
import pathlib
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from report_cases import episodes, task, tree
from rich.console import Console

from agentrm_jax.data.trees import FailureRecord, TreeRecord
from agentrm_jax.evaluation.depths import value_by_depth
from agentrm_jax.evaluation.report import ReportPage, run_page, write_report
from agentrm_jax.evaluation.results import comparisons, result_rows
from agentrm_jax.evaluation.searches import tree_search
from agentrm_jax.evaluation.tables import (
    comparison_sentences,
    console_table,
    environment_table,
    gap_table,
    heat_map,
    method_table,
    score_quality,
)
from agentrm_jax.evaluation.viewer import Viewer, make_viewer, tree_answer

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} & $x_1$"
STAGES = [
    {"stage": "explore", "seconds": 61.0, "summary": {"trees": 3, "states_per_tree": 4.5}},
    {"stage": "evaluate", "seconds": 5.25, "summary": {}},
]


class Page(html.parser.HTMLParser):
    """Collects elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def viewer(*trees: TreeRecord) -> Viewer:
    searches = [tree_search(each) for each in trees]
    return make_viewer(map(tree_answer, searches), searches)


def _scores() -> list[dict]:
    generator = np.random.default_rng(0)
    return [
        {
            "reward_model": f"explicit {EVIL}",
            "task_id": str(i // 5),
            "score": float(generator.random()),
            "outcome": float(i % 2),
        }
        for i in range(50)
    ]


def _by_n(*environments: str) -> list[dict]:
    return [
        {
            "task": task,
            "reward_model": model,
            "n": n,
            "score_mean": 0.1 * n + 0.05 * i,
            "score_ci95": [0.1 * n - 0.05, 0.1 * n + 0.1],
            "n_tasks": 9,
        }
        for task in ("all", *environments)
        for i, model in enumerate((f"explicit {EVIL}", "oracle"))
        for n in range(1, 6)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("runs") / "demo"
    directory.mkdir()
    (directory / "config.resolved.yaml").write_text(f"seed: 7\nnote: {json.dumps(EVIL)}\n")
    (directory / "versions.json").write_text('{"packages": {"jax": "9.9.9"}}')
    made = episodes(8)
    losses = [
        {"stage": "sft", "update": u, "loss": 1 / u, **({} if u % 4 else {"held_out_loss": 0.5})}
        for u in range(1, 9)
    ]
    page = run_page(directory, metrics=losses, scores=_scores(), viewer=viewer(tree(EVIL)))
    write_report(
        directory,
        {
            "results": result_rows(made),
            "comparisons": comparisons(made),
            "stages": STAGES,
            "by_n": _by_n("babyai"),
            "value_by_depth": value_by_depth([tree()]),
            "notes": [EVIL],
            "transfer": [{"row": EVIL, "column": "maze", "value": 0.5, "ci95": [0.4, 0.6]}],
        },
        page,
    )
    return directory


def test_json_files(written: pathlib.Path) -> None:
    report = json.loads((written / "report.json").read_text())
    assert report["results"] == json.loads((written / "results.json").read_text())
    assert report["stages"] == STAGES
    assert report["trees"] == STAGES[0]["summary"]
    assert {"a", "b", "split", "difference", "ci95"} <= set(report["comparisons"][0])


def test_page_shows_everything(written: pathlib.Path) -> None:
    page = Page((written / "report.html").read_text())
    for shown in ("beam 5x5, explicit", "upper bound", "9.9.9", "held-out tasks", "1 min 01 s"):
        assert shown in page.text
    figures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(figures) == 6
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)


def test_page_is_self_contained_and_only_its_own_scripts_run(written: pathlib.Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    assert page.text.count("<img src=x onerror=alert(2)> {{ 7 * 7 }}") >= 6  # as text
    for tag, attributes in page.elements:
        assert tag not in ("img", "link", "iframe", "object")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    policy = dict(page.elements)["meta"]["content"] or ""
    assert [f"sha256-{digest}" for digest in hashes] == re.findall(r"sha256-[^']+", policy)
    assert len(scripts) == 3
    assert "default-src 'none'" in policy
    kinds = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert kinds == ["application/json"] * (len(kinds) - 3) + [None] * 3


def test_blocks_of_data_hold_hostile_texts_as_text(written: pathlib.Path) -> None:
    text = (written / "report.html").read_text()
    blocks = re.findall(r'<script type="application/json" id="(.*?)">(.*?)</script>', text)
    assert [name for name, _ in blocks] == ["viewer-data", "search-0"]
    data, search = (json.loads(block) for _, block in blocks)
    assert EVIL in search["texts"]
    assert data["tasks"][0]["id"] == task().task_id
    assert not any(set("<>&\u2028\u2029") & set(block) for _, block in blocks)


def test_the_tables_need_no_script(written: pathlib.Path) -> None:
    text = re.sub(r"<script.*?</script>", "", (written / "report.html").read_text(), flags=re.S)
    page = Page(text)
    assert sum(tag == "table" for tag, _ in page.elements) >= 4
    assert "beam 5x5, explicit" in page.text
    assert "Oracle gap" in page.text


def test_figures_are_well_formed_and_take_the_pages_colours(written: pathlib.Path) -> None:
    text = (written / "report.html").read_text()
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    for figure in figures:
        xml.etree.ElementTree.fromstring(figure)
        assert "currentColor" in figure
        assert not set(re.findall(r"#[0-9a-f]{6}\b", figure)) - {"#ffffff"}
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(targets) <= set(identifiers)
    assert len({i for i in identifiers if i in targets}) == sum(i in targets for i in identifiers)


def test_an_empty_run_has_a_report(tmp_path: pathlib.Path) -> None:
    page = write_report(tmp_path / "elsewhere", {})
    assert page == tmp_path / "elsewhere" / "report.html"
    assert "No method was evaluated" in page.read_text()


def test_one_method_one_task_one_split(tmp_path: pathlib.Path) -> None:
    made = [e for e in episodes(1) if e.task.kind == "OpenDoor"]
    parts = {"results": result_rows(made), "comparisons": comparisons(made)}
    page = write_report(tmp_path, parts)
    assert "greedy" in page.read_text()


def test_methods_come_first_and_the_oracle_last() -> None:
    table = method_table(result_rows(episodes(3)))
    assert [entry["baseline"] for entry in table] == [False, False, True, True, True, True]
    assert table[-1]["label"] == "oracle-of-5"


def test_macro_is_the_mean_over_kinds() -> None:
    made = [e for e in episodes(4) if e.method == "greedy"]
    made = [dataclasses.replace(e, outcome=float(e.task.kind == "PickupLoc")) for e in made]
    uneven = [e for e in made if e.task.kind == "PickupLoc" or e.task.task_id.endswith("/0")]
    (entry,) = method_table(result_rows(uneven))
    assert entry["macro"] == pytest.approx(1 / 3)
    assert entry["cells"][2]["score_mean"] == pytest.approx(4 / 6)


def test_several_environments(tmp_path: pathlib.Path) -> None:
    """Macro is the mean of their means, and there are tables of them."""
    own = [e for e in episodes(4) if e.method in ("greedy", "best_of_n", "random_of_n")]
    own = [dataclasses.replace(e, outcome=float(e.task.kind == "PickupLoc")) for e in own]
    other = task(9, "PickupLoc")
    other = dataclasses.replace(other, environment="maze", kind="double_t", task_id="maze/9")
    mazes = [
        dataclasses.replace(e, task=other, outcome=0.5) for e in own if e.task.task_id[-2:] == "/0"
    ]
    made = [*own, *{e.variant: e for e in mazes}.values()]
    rows = result_rows(made)
    entries = method_table(rows)
    assert [entry["macro"] for entry in entries] == [pytest.approx((1 / 3 + 0.5) / 2)] * 3
    file = io.StringIO()
    Console(file=file, width=120).print(environment_table(rows))
    [babyai] = [line for line in file.getvalue().splitlines() if "babyai" in line]
    [maze] = [line for line in file.getvalue().splitlines() if "maze (held out)" in line]
    assert babyai.count("0.333 ±") == maze.count("0.500 ±") == 2  # of best-of-5 and greedy
    by_n = _by_n("babyai", "maze")
    parts = {"results": rows, "comparisons": comparisons(made), "by_n": by_n}
    page = Page(write_report(tmp_path, parts).read_text())
    assert page.text.count("maze") >= 3  # in both tables, and in a panel
    assert "By environment" in page.text
    assert "By kind" in page.text
    assert "mean of the environments' means" in page.text
    assert environment_table(result_rows(own)) is None


def test_console_table() -> None:
    file = io.StringIO()
    Console(file=file, width=160).print(console_table(result_rows(episodes(10))))
    lines = file.getvalue().splitlines()
    (greedy,) = [line for line in lines if "greedy (baseline)" in line]
    assert len(re.findall(r"0\.\d{3} ± 0\.\d{3}  n=\d+", greedy)) == 3
    assert any("oracle-of-5 (upper bound)" in line for line in lines)


CONTROLS = "\x00\x1b[31m\x07\x9b\u202e\u2066\u200b\u2028\ud83d"


def test_control_characters_are_shown_as_escapes_everywhere(tmp_path: pathlib.Path) -> None:
    """Names, errors and what environments say: in the page, its figures, tables and sentences."""
    made = [
        dataclasses.replace(
            episode,
            task=dataclasses.replace(episode.task, environment=f"env{i % 2}{CONTROLS}"),
            reward_model=episode.reward_model and f"{episode.reward_model}{CONTROLS}",
        )
        for i, episode in enumerate(episodes(2))
    ]
    rows, compared = result_rows(made), comparisons(made)
    shown = dataclasses.replace(tree(), first_observation=CONTROLS, error=CONTROLS)
    ended = [{"stage": CONTROLS, "seconds": 1.0, "summary": {CONTROLS: CONTROLS}}]
    parts = {"results": rows, "comparisons": compared, "stages": ended}
    page = write_report(tmp_path, parts, ReportPage(viewer=viewer(shown)))
    console = Console(file=io.StringIO(), width=500)
    console.print(console_table(rows))
    console.print(environment_table(rows))
    text = page.read_text(encoding="utf-8")
    for where in (text, console.file.getvalue(), *comparison_sentences(compared)):
        assert all(c in "\n\t" or c.isprintable() for c in where if c not in "\u00a0")
    assert r"\x00\x1b[31m\x07\x9b\u202e\u2066\u200b\u2028" in text
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_replies_without_an_action_and_failures_are_shown(tmp_path: pathlib.Path) -> None:
    made = [dataclasses.replace(episode, replies_without_action=2) for episode in episodes(2)]
    made[0] = dataclasses.replace(made[0], error="broke", failed_candidates=3)
    rows = result_rows(made)
    greedy = next(
        r for r in rows if r["method"] == "greedy" and (r["task"], r["split"]) == ("all",) * 2
    )
    assert greedy["replies_without_action"] == 2 * greedy["n_tasks"]
    assert (greedy["errors"], greedy["failed_candidates"]) == (1, 3)
    console = Console(file=io.StringIO(), width=200)
    console.print(console_table(rows))
    header = next(line for line in console.file.getvalue().splitlines() if "method" in line)
    assert re.search(r"errors .*no action", header)
    failure = FailureRecord(node=0, action="x", multiplicity=1, purpose="expand", reason="it broke")
    grown = dataclasses.replace(tree(), last_failures=(failure,))
    found = tree_search(grown)
    assert found.nodes[-1].observation == "it broke"
    assert (found.nodes[-1].status, found.nodes[-1].parent) == ("failed", 0)
    assert "1 candidates failed" in found.note
    page = write_report(tmp_path, {"results": rows}).read_text(encoding="utf-8")
    assert '<th scope="col">no action</th>' in page


def test_sentences_follow_the_interval() -> None:
    row = {"a_label": "A", "b_label": "B", "split": "all", "n_tasks": 9}
    intervals = [(0.3, [0.1, 0.5]), (0.1, [-0.1, 0.3]), (-0.3, [-0.5, -0.1])]
    better, unsure, worse = comparison_sentences(
        [{**row, "difference": d, "ci95": ci} for d, ci in intervals]
    )
    assert better == "A is better than B: +0.300 [+0.100, +0.500] over 9 tasks"
    assert "not distinguishable from" in unsure
    assert "worse than" in worse


def test_many_comparisons_are_corrected_and_shortened() -> None:
    row = {"a_label": "A", "split": "all", "n_tasks": 9, "difference": 0.3, "ci95": [0.1, 0.5]}
    corrected = [{**row, "b_label": f"B{i}", "p_holm": 0.01 if i < 2 else 0.2} for i in range(13)]
    assert comparison_sentences(corrected) == [
        "A is better than B0: +0.300 [+0.100, +0.500] over 9 tasks, p 0.010 by Holm's rule",
        "A is better than B1: +0.300 [+0.100, +0.500] over 9 tasks, p 0.010 by Holm's rule",
        "11 other comparisons over all tasks show no difference",
    ]
    assert "A is not distinguishable from B12" in comparison_sentences(corrected[-6:])[-1]


def test_scores_that_cannot_be_judged_are_null() -> None:
    row = {"reward_model": "explicit", "task_id": "a", "score": 0.5, "outcome": 1.0}
    found = score_quality([row, {**row, "score": 0.7}])["explicit"]
    assert found == {"n": 2, "pairwise_accuracy": None, "pearson": None, "spearman": None}


def test_the_oracle_gap_comes_first_also_without_stored_gaps() -> None:
    rows = result_rows(episodes(5))
    means = {
        (row["method"], row["split"]): row["score_mean"] for row in rows if row["task"] == "all"
    }
    [entry] = gap_table(rows, [])
    for split, cell in zip(("held_in", "held_out", "all"), entry["cells"], strict=True):
        assert cell is not None
        expected = means["oracle_of_n", split] - means["random_of_n", split]
        assert cell["gap"] == pytest.approx(expected)
    stored = [{"task": "all", "split": "all", "n": 5, "gap": 0.25, "ci95": [0.1, 0.4]}]
    assert gap_table(rows, stored)[0]["cells"] == [None, None, {"gap": 0.25, "ci95": [0.1, 0.4]}]


def test_a_heat_map_has_every_cell_and_its_share_of_the_range() -> None:
    cells = [("a", "x", 0.2), ("a", "y", 0.6), ("b", "y", 0.4)]
    found = heat_map([{"row": r, "column": c, "value": v} for r, c, v in cells])
    assert found["columns"] == ["x", "y"]
    shares = {(r, c): cell["share"] for r, own in found["rows"].items() for c, cell in own.items()}
    assert shares == {("a", "x"): 0.0, ("a", "y"): 1.0, ("b", "y"): pytest.approx(0.5)}


def test_values_by_depth() -> None:
    """The tree of report_cases: values 2/3 | 2/3 | 1, 0 | 1, and a node without visits."""
    rows = value_by_depth([tree(), tree()])
    assert [row["states"] for row in rows] == [2, 2, 4, 2]
    assert [row["mean"] for row in rows] == pytest.approx([2 / 3, 2 / 3, 0.5, 1.0])
    assert (rows[2]["low"], rows[2]["high"]) == (0.0, 1.0)
