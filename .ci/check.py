"""Style, types, floors, words and the collection of all tests as one command."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECKS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
    "sizes": [sys.executable, ".ci/sizes.py"],
    "public names": [sys.executable, ".ci/public_names.py"],
    "reference": [sys.executable, ".ci/reference.py"],
    "run files": [sys.executable, ".ci/run_files.py"],
    "import-linter": [str(pathlib.Path(sys.executable).with_name("lint-imports"))],
    "words": [sys.executable, str(ROOT / ".ci" / "words.py")],
    # Two test files of one name, or one that cannot be imported, would else be seen after an hour.
    "collection": [sys.executable, "-m", "pytest", "--collect-only", "-q"],
}


def main() -> int:
    failed = []
    for name, command in CHECKS.items():
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(f"{name}: {'ok' if result.returncode == 0 else 'FAILED'}", flush=True)
        if result.returncode:
            failed.append(name)
            print(result.stdout + result.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
