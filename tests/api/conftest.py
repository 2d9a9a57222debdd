"""The helpers of other folders of tests: servers and runs that are made up."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "envs"), str(TESTS / "evaluation")]
