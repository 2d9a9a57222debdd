"""Fails unless the quickstart's reward model helps, also where it does not see the end (blind)."""

import json
import pathlib
import sys

BASELINES = ("random_of_n", "shortest_of_n")
"""The margin over `likeliest_of_n` is as small as 0.06 [0.005, 0.11] with some training seeds."""
LABELS = ("best-of-5, explicit", "best-of-5, explicit, blind")


def main(path: str) -> int:
    report = json.loads(pathlib.Path(path).read_text())
    found = {
        (c["a_label"], c["b"]): c
        for c in report["comparisons"]
        if c["split"] == "all" and c["a"] == "best_of_n"
    }
    helped = True
    for label in LABELS:
        for other in BASELINES:
            comparison = found[label, other]
            low, high = comparison["ci95"]
            print(f"{label} - {other}: {comparison['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
            helped &= low > 0
    return 0 if helped else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
