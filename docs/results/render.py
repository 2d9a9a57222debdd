"""Writes the tables of the results pages from the records next to them.

    python docs/results/render.py

A record NAME.json is the `experiment.json` of `agentrm experiment NAME`, or has the `comparisons`
of a `report.json` (`agentrm report RUN RUN --output DIR` for several seeds), or has tables of its
own (`refusals`, `siblings`). Its tables replace what stands between the lines `<!-- NAME -->` and
`<!-- end -->` of a page.
"""

import json
import pathlib
import re

from agentrm_jax.evaluation.experiment_table import markdown
from agentrm_jax.pipeline.experiments.output import shown_tables

FOLDER = pathlib.Path(__file__).parent


def tables(name: str) -> str:
    """The tables of a record, with the seeds, the commit and the machine of its runs."""
    record = json.loads((FOLDER / f"{name}.json").read_text())
    if "comparisons" in record:
        return differences(record["comparisons"])
    if "siblings" in record:
        return siblings(record["siblings"])
    if "refusals" in record:
        return refusals(record["refusals"])
    made = record["versions"]
    source = (
        f"Size {record['size']}, seeds {', '.join(map(str, record['seeds']))}, commit "
        f"{made['git_commit'][:7]}, jax {made['packages']['jax']}, {made['cpu_count']} CPU cores."
    )
    shown = [markdown(table) for table in shown_tables({**record, "paper": []})]
    return "\n\n".join([*shown, source])


def differences(comparisons: list[dict]) -> str:
    """The paired differences over all tasks, those of a reward model to a baseline."""
    lines = ["| difference | score | tasks | p, Holm |", "|---|---|---|---|"]
    for row in comparisons:
        low, high = row["ci95"]
        lines.append(
            f"| {row['a_label']}, over {row['b_label']} | {row['difference']:+.3f} [{low:+.3f}, "
            f"{high:+.3f}] | {row['n_tasks']} | {row['p_holm']:.3f} |"
        )
    return "\n".join(lines)


def refusals(rows: list[dict]) -> str:
    """The control next to the reward model."""
    lines = ["| control | score | explicit, over it | explicit, blind, over it | tasks |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        cells = [estimate(row[key], "+") for key in ("explicit_over", "explicit_blind_over")]
        lines.append(
            f"| {row['control']} | {row['score']:.3f} | {' | '.join(cells)} | {row['n_tasks']} |"
        )
    return "\n".join(lines)


def siblings(record: dict) -> str:
    """The accuracies among siblings: of each training, and by kind of the pair."""
    lines = ["| training | before the answer | after the answer |", "|---|---|---|"]
    for row in record["trainings"]:
        cells = [estimate(row[key]) if key in row else "" for key in ("before", "after")]
        lines.append(f"| {row['training']} | {' | '.join(cells)} |")
    lines += ["", "| pairs, plain training | number | before | after | likelihood |"]
    lines.append("|---|---|---|---|---|")
    for row in record["pairs"]:
        values = (f"{row[key]:.2f}" for key in ("before", "after", "likelihood"))
        lines.append(f"| {row['pairs_of']} | {row['pairs']} | {' | '.join(values)} |")
    return "\n".join(lines)


def estimate(value: list[float], sign: str = "") -> str:
    """A mean with its interval."""
    return "{:{s}.3f} [{:{s}.3f}, {:{s}.3f}]".format(*value, s=sign)


def rendered(page: str) -> str:
    """A page with its tables."""
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{tables(found[2])}\n\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.md")):
        path.write_text(rendered(path.read_text()))
