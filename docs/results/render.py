"""Writes the tables and figures of the results pages from the records next to them.

    python docs/results/render.py

A record NAME.json is the `experiment.json` of `agentrm experiment NAME`, or has the `comparisons`
of a `report.json` (`agentrm report RUN RUN --output DIR` for several seeds), or has tables of its
own (`refusals`, `fewest_invalid`, `off_diagonal`, `siblings`), or is the output of
`benchmarks.device`, which is absent until it has run on a device. Its tables replace what stands
between the lines `<!-- NAME -->` and `<!-- end -->` of a page; a table over a number is drawn as
well, as NAME_1.svg and so on.
"""

import json
import pathlib
import re
import textwrap

from agentrm_jax.evaluation.experiment_plot import lines_svg
from agentrm_jax.evaluation.experiment_table import line_plot, markdown
from agentrm_jax.pipeline.experiments.output import shown_tables

FOLDER = pathlib.Path(__file__).parent
MOST_ROWS = 12
"""Rows of a table that is shown at once."""
BUDGETS = ("policy_tokens", "reward_tokens", "env_steps", "errors")
STYLE = """<style>
svg { --accent: #2a6fb0; --second: #b0532a; --line: #ddd; color: #222; font-family: sans-serif }
@media (prefers-color-scheme: dark) {
svg { --accent: #7db4e6; --second: #e69a7d; --line: #444; color: #ddd }
}
</style>"""


def tables(name: str) -> str:
    """The tables of a record, with the seeds, the commit and the machine of its runs."""
    if name == "device":
        path = FOLDER / "device.json"
        return device_tables(json.loads(path.read_text()) if path.exists() else None)
    record = json.loads((FOLDER / f"{name}.json").read_text())
    if "comparisons" in record:
        return differences(record["comparisons"])
    if "siblings" in record:
        return siblings(record["siblings"])
    if "refusals" in record:
        return refusals(record["refusals"])
    if "off_diagonal" in record:
        return off_diagonal(record["off_diagonal"])
    if "fewest_invalid" in record:
        return fewest_invalid(record["fewest_invalid"])
    made = record["versions"]
    commit, *dirty = made["git_commit"].split("-")
    source = (
        f"Size {record['size']}, seeds {', '.join(map(str, record['seeds']))}, commit {commit[:7]}"
        f"{' with uncommitted changes' if dirty else ''}, jax {made['packages']['jax']}, "
        f"{made['cpu_count']} CPU cores."
    )
    if others := [number for number in record["paper"] if not number["row"]]:
        values = (f"{each['label']} {each['value']:g}" for each in others)
        source += f" The paper ({others[0]['source']}): {', '.join(values)}."
    shown = [markdown(table) for table in shown_tables(with_budgets(record))]
    for number in figures(name):
        shown[number - 1] += (
            f"\n\n![{record['tables'][number - 1]['table']['title']}]({name}_{number}.svg)"
        )
    if name == "transfer":
        shown.insert(0, "![Gains in points, trained on a level (rows)](transfer_gains.svg)")
    return "\n\n".join([*map(folded, shown), textwrap.fill(source, 100)])


def with_budgets(record: dict) -> dict:
    """A record whose tables of methods have the gap that is closed first, and their budgets."""
    tables = []
    for each in record["tables"]:
        table = each["table"]
        if table["measure"] == "methods" and table["level"] == "all" and not table["columns"]:
            values = table["values"]
            first = [name for name in ("gap_closed",) if name not in values]
            table = {**table, "values": [*first, *dict.fromkeys([*values, *BUDGETS])]}
        tables.append({**each, "table": table})
    return {**record, "tables": tables}


def folded(text: str) -> str:
    """A table that is opened by a click if it has many rows; its heading becomes the button."""
    rows = sum(line.startswith("|") for line in text.splitlines()) - 2
    if rows <= MOST_ROWS:
        return text
    heading, table = text.split("\n", 1)
    name = heading.lstrip("# ")
    summary = f"<summary>{name} ({rows} rows)</summary>"
    return f'<details markdown="1">{summary}\n\n{table.strip()}\n\n</details>'


def figures(name: str) -> dict[int, str]:
    """The figures of a record as SVG files, by the number of their table."""
    if name == "device":
        return {}
    record = json.loads((FOLDER / f"{name}.json").read_text())
    found = {}
    for number, each in enumerate(record.get("tables", []), start=1):
        table = each["table"]
        if table["x"]:
            lines = line_plot(table, each["rows"])
            drawn = lines_svg(lines, table["x"], table["values"][0].replace("_", " "))
            file = drawn.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
            found[number] = file.replace("<title>", f"{STYLE}<title>", 1)
    return found


def transfer_gains() -> str:
    """The heat map of transfer: gains of fine-tuned policies, and of reward models."""
    record = json.loads((FOLDER / "transfer.json").read_text())
    scores = {
        (row["run"], row["label"], row["task"].rpartition("/")[2]): 100 * row["score_mean"]
        for each in record["tables"]
        for row in each["rows"]
    }
    levels = [key[2] for key in scores if key[:2] == ("policy_1", "greedy")]
    panels = (
        ("fine-tuned policy, over the general one", "policy", "greedy", "greedy"),
        ("reward model, over random choice", "reward", "best-of-5, explicit", "random-of-5"),
    )
    parts = ["<title>Gains in points by the level of the training and of the test</title>"]
    for number, (title, run, label, baseline) in enumerate(panels):
        left = 118 + 380 * number
        parts.append(f'<text x="{left}" y="14" font-weight="bold">{title}</text>')
        for column, level in enumerate(levels):
            middle = left + 35 + 70 * column
            parts.append(f'<text x="{middle}" y="34" text-anchor="middle">{level}</text>')
        for row in range(3):
            y = 42 + 34 * row
            if not number:
                name = f"{levels[row]}</text>"
                parts.append(f'<text x="{left - 8}" y="{y + 21}" text-anchor="end">{name}')
            for column, level in enumerate(levels):
                gain = scores[f"{run}_{row + 1}", label, level]
                gain -= scores[f"reward_{row + 1}", baseline, level]
                colour = "var(--accent)" if gain > 0 else "var(--second)"
                own = ' stroke="currentColor" stroke-width="2"' if levels[row] == level else ""
                x = left + 70 * column
                parts.append(
                    f'<rect x="{x}" y="{y}" width="66" height="30" fill="{colour}" '
                    f'fill-opacity="{min(1.0, abs(gain) / 50):.2f}"{own}/>'
                    f'<text x="{x + 33}" y="{y + 20}" text-anchor="middle">{gain:+.1f}</text>'
                )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 790 150" role="img" font-size="11" '
        f'fill="currentColor">{STYLE}{"".join(parts)}</svg>\n'
    )


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


def fewest_invalid(rows: list[dict]) -> str:
    """The choice among the trajectories with the fewest invalid actions."""
    lines = ["| run | chosen by | score | over random choice | tasks |", "|---|---|---|---|---|"]
    for row in rows:
        gain = "" if row["chosen_by"] == "random" else estimate(row["over_random"], "+")
        lines.append(
            f"| {row['run']}, n = {row['n']:.0f} | {row['chosen_by']} | {row['score']:.3f} | "
            f"{gain} | {row['n_tasks']} |"
        )
    return "\n".join(lines)


def off_diagonal(rows: list[dict]) -> str:
    """The gains on the task of the training and on others."""
    lines = ["| gain | tested on | difference | tasks |", "|---|---|---|---|"]
    for row in rows:
        gain = estimate(row["gain"], "+")
        lines.append(f"| {row['name']} | {row['tested_on']} | {gain} | {row['n_tasks']} |")
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


def device_tables(record: dict | None) -> str:
    """The parts of a run of `benchmarks.device`; a tiny one shows nothing about a device."""
    if record is None or record["tiny"] or record["platform"] == "cpu":
        return "Not measured yet."
    parts, machine = record["parts"], record["hardware"]
    lines = [f"{machine['device']}, jax {machine['jax']}, {record['dtype']}."]
    ceilings = parts.get("ceilings", {})
    if ceilings.get("status") == "measured":
        lines[0] += (
            f" A large copy moves {ceilings['bytes_per_second'] / 1e9:,.0f} GB/s, a large product "
            f"computes {ceilings['flops_per_second'] / 1e12:,.0f} TFLOP/s."
        )
    lines += ["", "| part | layers | attention | figure | of the copy | of the product |"]
    lines.append("|---|---|---|---|---|---|")
    speeds = {
        "decode": "tokens_per_second", "update": "states_per_second",
        "prefill": "tokens_per_second", "score": "candidates_per_second",
    }  # fmt: skip
    for name, row in parts.items():
        key = speeds.get(name.split()[0])
        if row["status"] != "measured":
            lines.append(f"| {name} | | | {row['status']}: {row['reason']} | | |")
        elif key is not None:
            shares = (row.get(f"share_of_{of}") for of in ("copy", "product"))
            cells = ("" if not share else f"{share:.2f}" for share in shares)
            figure = f"{row[key]:,.0f} {key.replace('_per_', ' a ')}"
            cells = [name, str(row["layers"]), row["attention"], figure, *cells]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *device_exactness(parts)])


def device_exactness(parts: dict[str, dict]) -> list[str]:
    """The exactness of each attention backend, alone and in an engine."""
    lines = []
    if parts.get("attention", {}).get("status") == "measured":
        lines += ["", "| attention of training | rows | relative error | milliseconds |"]
        lines.append("|---|---|---|---|")
        for packing in ("trees", "paths"):
            for name, row in parts["attention"][packing]["backends"].items():
                cells = [str(row["error"]), ""]
                if "milliseconds" in row:
                    cells = [f"{row['error']:.1e}", f"{row['milliseconds']:.2f}"]
                lines.append(f"| {name} | {packing} | {' | '.join(cells)} |")
    if parts.get("engines", {}).get("status") == "measured":
        lines += [
            "",
            "| engine | dtype | tokens | near-ties | unexplained | log-probability, error ",
        ]
        lines[-1] += "| score, error |"
        lines.append("|---|---|---|---|---|---|---|")
        for dtype in ("float32", "bfloat16"):
            for name, row in parts["engines"].get(dtype, {}).items():
                if isinstance(row, dict) and "error" in row:
                    lines.append(f"| {name} | {dtype} | {row['error']} | | | | |")
                elif isinstance(row, dict):
                    lines.append(
                        f"| {name} | {dtype} | {row['tokens']} | {row['near_ties']} | "
                        f"{row['unexplained']} | {row['log_prob_error']:.1e} | "
                        f"{row['score_error']:.1e} |"
                    )
    return lines


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
        for name in re.findall(r"<!-- (\w+) -->\n", path.read_text()):
            for number, drawn in ({} if name == "end" else figures(name)).items():
                (FOLDER / f"{name}_{number}.svg").write_text(drawn + "\n")
    (FOLDER / "transfer_gains.svg").write_text(transfer_gains())
