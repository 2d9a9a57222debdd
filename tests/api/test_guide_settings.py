"""Settings in the guides: each YAML block is accepted as a configuration, or laid over one."""

from __future__ import annotations

import pathlib
import re

import pytest
import yaml

from agentrm_jax.pipeline.load_config import load_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "tiny.yaml"
ELSEWHERE = {
    "like: h100": "a chip: tests/plan",
    "title: A larger": "an experiment: tests/pipeline",
    "plugins: [lookahead.py]": "needs the file: tests/api/test_examples.py",
}
"""First words of blocks that are no configuration of a run, and what tests them."""


def blocks() -> list[tuple[str, str]]:
    """The YAML blocks of README and pages, with page and line."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        for match in re.finditer(r"^```yaml[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{page.relative_to(ROOT)}:{line}", match[1]))
    return found


def test_there_are_blocks() -> None:
    texts = [text for _, text in blocks()]
    assert len(texts) > 20
    for words in ELSEWHERE:
        assert any(text.startswith(words) for text in texts), words


@pytest.mark.parametrize(
    ("where", "text"), [pytest.param(*block, id=block[0]) for block in blocks()]
)
def test_a_block_is_accepted(where: str, text: str, tmp_path: pathlib.Path) -> None:
    if text.startswith(tuple(ELSEWHERE)):
        assert isinstance(yaml.safe_load(text), dict)
        return
    path = tmp_path / "block.yaml"
    path.write_text(text.replace("HOST:PORT", "127.0.0.1:8000"))
    load_config(TINY, [f"--config={path}"])
