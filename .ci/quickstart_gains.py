"""Fails unless the quickstart's reward model helps: best-of-n above random-of-n and greedy."""

import json
import pathlib
import sys


def main(path: str) -> int:
    report = json.loads(pathlib.Path(path).read_text())
    found = {(c["a"], c["b"]): c for c in report["comparisons"] if c["split"] == "all"}
    helped = True
    for other in ("random_of_n", "greedy"):
        comparison = found["best_of_n", other]
        low, high = comparison["ci95"]
        print(f"best_of_n - {other}: {comparison['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
        helped &= low > 0
    return 0 if helped else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
