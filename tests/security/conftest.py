"""The hostile texts of the benchmarks, and the servers of other tests, are used here as well."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "serve"), str(ROOT / "tests" / "clients")]
