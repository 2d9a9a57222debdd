"""The figures of the pages: the pipeline, and a search tree that is packed into one row.

python docs/figures/draw.py    writes docs/figures/*.svg
"""

import html
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from agentrm_jax.data.packing import pack
from agentrm_jax.data.sequences import TokenSequence
from agentrm_jax.model.attention import causal_mask

FOLDER = pathlib.Path(__file__).resolve().parent
INK, PALE, LINE = "#24292f", "#57606a", "#8c959f"
COLORS = ("#cfe2ff", "#d1f0d5", "#ffe3b8", "#f6d0dc", "#e2d6f7", "#cdecee")
_STYLE = "font-family:system-ui,sans-serif;fill:" + INK


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Returns a picture on a light panel, which is legible on light and dark pages."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" role="img"><title>{html.escape(title)}</title>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>'
    )
    panel = f'<rect width="{width}" height="{height}" rx="8" fill="#f6f8fa"/>'
    return "\n".join([head, panel, *parts, "</svg>", ""])


def box(x: int, y: int, width: int, height: int, color: str) -> str:
    """Returns a rectangle."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{color}" '
        f'stroke="{LINE}"/>'
    )


def text(x: float, y: float, words: str, *, size: int = 14, color: str = INK) -> str:
    """Returns a centred line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="middle" font-size="{size}" '
        f'style="{_STYLE};fill:{color}">{html.escape(words)}</text>'
    )


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """Returns an arrow from one point to another."""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}" stroke-width="1.5" '
        'marker-end="url(#tip)"/>'
    )


STAGES = (
    ("Expert trajectories", "experts", 0),
    ("Policy", "sft", 1),
    ("Search trees", "explore", 2),
    ("Values of states", "label", 2),
    ("Reward model", "train-rm", 3),
    ("Test-time search", "evaluate", 4),
    ("Scores, intervals", "report", 5),
)


def pipeline() -> str:
    """Returns the stages of a run in two rows, with the command of each."""
    width, height, columns = 168, 58, 4
    place = [
        (24 + (i % columns) * (width + 36), 24 + (i // columns) * (height + 62))
        for i in range(len(STAGES))
    ]
    parts = []
    for (name, command, color), (x, y) in zip(STAGES, place, strict=True):
        parts += [
            box(x, y, width, height, COLORS[color]),
            text(x + width / 2, y + 25, name, size=16),
            text(x + width / 2, y + 45, f"agentrm {command}", size=12, color=PALE),
        ]
    for (x, y), (next_x, next_y) in itertools.pairwise(place):
        if y == next_y:
            parts.append(arrow(x + width, y + height // 2, next_x - 2, y + height // 2))
        else:
            middle, end = y + height + 31, next_x + width // 2
            parts.append(
                f'<path d="M{x + width // 2} {y + height}V{middle}H{end}V{next_y - 2}" fill="none" '
                f'stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"/>'
            )
    last_y = place[5][1]
    policy_x = place[1][0] + 40
    parts.append(arrow(policy_x, place[1][1] + height, policy_x, last_y - 2))
    parts.append(text(policy_x + 27, last_y - 10, "policy", size=12, color=PALE))
    return svg(4 * width + 3 * 36 + 48, 2 * height + 62 + 48, "The pipeline", parts)


NODES = (("A", -1, 3), ("B", 0, 2), ("C", 1, 2), ("D", 1, 1), ("E", 0, 2), ("F", 4, 2))
"""A tree in preorder: name, parent, number of tokens."""
CENTRES = ((170, 50), (95, 135), (50, 220), (140, 220), (245, 135), (245, 220))


def packed_tree() -> str:
    """Returns a tree, its row of tokens, and the attention mask that the package computes."""
    parts = [text(150, 288, "a search tree: nodes with their tokens", size=13, color=PALE)]
    for node, (name, parent, count) in enumerate(NODES):
        x, y = CENTRES[node]
        if parent >= 0:
            parts.append(arrow(CENTRES[parent][0], CENTRES[parent][1] + 18, x, y - 20))
        half = 12 * count + 6
        parts.append(box(x - half, y - 18, 2 * half, 36, COLORS[node]))
        parts.append(text(x, y + 5, " ".join(f"{name}{i + 1}" for i in range(count))))
    return svg(740, 420, "A packed tree", [*parts, *_mask()])


def _mask() -> Iterator[str]:
    """Yields the row of the tree and its attention mask."""
    owners = [node for node, (_, _, count) in enumerate(NODES) for _ in range(count)]
    row = pack([_sequence(owners)], len(owners))
    mask = np.asarray(causal_mask(row.segments, row.subtree_ends))[0]
    left, top, size = 390, 66, 26
    for i, node in enumerate(owners):
        name = f"{NODES[node][0]}{i - owners.index(node) + 1}"
        yield text(left + (i + 0.5) * size, top - 24, name, size=12)
        position = str(row.positions[0, i])
        yield text(left + (i + 0.5) * size, top - 8, position, size=11, color=PALE)
        yield text(left - 16, top + (i + 0.68) * size, name, size=12)
        for j, key in enumerate(owners):
            color = COLORS[key] if mask[i, j] else "#ffffff"
            yield (
                f'<rect x="{left + j * size}" y="{top + i * size}" width="{size}" '
                f'height="{size}" fill="{color}" stroke="#d0d7de"/>'
            )
    yield text(left - 36, top - 24, "token", size=11, color=PALE)
    yield text(left - 36, top - 8, "position", size=11, color=PALE)
    below = top + len(owners) * size + 22
    middle = left + len(owners) * size / 2
    yield text(middle, below, "row: attends to the colored tokens", size=13, color=PALE)


def _sequence(owners: Sequence[int]) -> TokenSequence:
    """The tree as one sequence, with a token for each entry of owners."""
    depths, ends = [0] * len(NODES), [0] * len(NODES)
    for node, (_, parent, _) in enumerate(NODES):
        depths[node] = 0 if parent < 0 else depths[parent] + NODES[parent][2]
    for node in reversed(range(len(NODES))):
        own_end = owners.index(node) + NODES[node][2]
        children = [ends[i] for i, (_, parent, _) in enumerate(NODES) if parent == node]
        ends[node] = max([own_end, *children])
    zeros = np.zeros(len(owners), np.float32)
    positions = [depths[node] + i - owners.index(node) for i, node in enumerate(owners)]
    return TokenSequence(
        tokens=np.asarray(owners, np.int32),
        weights=zeros,
        targets=zeros,
        positions=np.asarray(positions, np.int32),
        subtree_ends=np.asarray([ends[node] for node in owners], np.int32),
    )


FIGURES = {"pipeline.svg": pipeline, "packed_tree.svg": packed_tree}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
