"""The figures of the pages: pipeline, tick of the search, pages, packed tree and floors.

python docs/figures/draw.py    writes docs/figures/*.svg
"""

import html
import itertools
import pathlib
import tomllib
from collections.abc import Iterator, Sequence

import numpy as np

from agentrm_jax.data.packing import pack
from agentrm_jax.data.sequences import TokenSequence
from agentrm_jax.engine import request
from agentrm_jax.engine.cache.prefix_cache import PrefixCache
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


def text(
    x: float, y: float, words: str, *, size: int = 14, color: str = INK, anchor: str = "middle"
) -> str:
    """Returns a line of text, centred if its anchor is not another one."""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" '
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


def dashed(x: float, y: float, width: float, height: float) -> str:
    """Returns an empty place: a rectangle with a dashed edge."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="none" '
        f'stroke="{LINE}" stroke-dasharray="4 3"/>'
    )


LANES = (
    ("1 ask", "Live trees ask for turns: three to expand a node, one for each rollout"),
    ("2 decode", "The policy decodes all turns in one batch; every call lays out its rows again"),
    ("3 act", "Environments answer; equal actions of a node become one child"),
    ("4 advance", "One compiled program attaches, selects and backs up in all trees"),
)
"""The lanes of a tick: name and sentence."""
ASKS = (("tree 1", "expands", 3), ("tree 2", "rolls out", 1), ("tree 3", "rolls out", 1))
"""The trees of the cohort that is asked: name, phase and number of turns."""
LANE, LANE_LEFT, SLOT = 112, 24, 142


def search_tick() -> str:
    """Returns one tick of the search: asking, decoding, acting and advancing."""
    width, height = 620, 58 + LANE * len(LANES)
    parts = []
    for lane, (name, sentence) in enumerate(LANES):
        y = 14 + lane * LANE
        parts.append(text(LANE_LEFT, y + 14, name, size=15, anchor="start"))
        parts.append(text(LANE_LEFT + 86, y + 14, sentence, size=12, color=PALE, anchor="start"))
    trees = [LANE_LEFT + 72 + number * SLOT for number in range(len(ASKS))]
    columns = (trees, (LANE_LEFT + 114, LANE_LEFT + 258, LANE_LEFT + 330), trees, trees)
    for lane in range(1, len(LANES)):
        top = 14 + lane * LANE
        for start, end in zip(columns[lane - 1], columns[lane], strict=True):
            parts.append(arrow(start, top - 24, end, top - 3))
    right, bottom = width - 14, 14 + 3 * LANE + 66
    parts.append(
        f'<path d="M{width - 62} {bottom}H{right}V63H{width - 34}" fill="none" stroke="{LINE}" '
        'stroke-width="1.5" marker-end="url(#tip)"/>'
    )
    return svg(width, height, "One tick of the search", [*parts, *_asks(), *_rows(), *_answers()])


def _asks() -> Iterator[str]:
    """Yields the trees that ask, and one whose environments act meanwhile."""
    top = 14 + 26
    for number, (name, phase, count) in enumerate(ASKS):
        x = LANE_LEFT + 10 + number * SLOT
        yield box(x, top, 124, 46, COLORS[number])
        yield text(x + 62, top + 19, name)
        yield text(x + 62, top + 37, f"{phase}: {count} turn{'s' * (count > 1)}", size=12)
    x = LANE_LEFT + 10 + len(ASKS) * SLOT
    yield dashed(x, top, 124, 46)
    yield text(x + 62, top + 19, "other cohort", color=PALE)
    yield text(x + 62, top + 37, "acts meanwhile", size=12, color=PALE)


def _rows() -> Iterator[str]:
    """Yields the rows of the batch: one for each turn, and two that stay free."""
    top, size = 14 + LANE + 28, 64
    owners = [number for number, (_, _, count) in enumerate(ASKS) for _ in range(count)]
    for row in range(len(owners) + 2):
        x = LANE_LEFT + 10 + row * (size + 8)
        if row < len(owners):
            yield box(x, top, size, 38, COLORS[owners[row]])
            yield text(x + size / 2, top + 24, f"row {row + 1}", size=12)
        else:
            yield dashed(x, top, size, 38)
            yield text(x + size / 2, top + 24, "free", size=12, color=PALE)


def _answers() -> Iterator[str]:
    """Yields the answers of the environments, and the trees after the tick."""
    top = 14 + 2 * LANE + 28
    answers = (("go left (2 of 3)", "go right"), ("take key",), ("done: return 1",))
    for number, texts in enumerate(answers):
        x = LANE_LEFT + 10 + number * SLOT
        height = 38 // len(texts)
        for i, words in enumerate(texts):
            yield box(x, top + i * (height + 2), 124, height, COLORS[number])
            yield text(x + 62, top + i * (height + 2) + height / 2 + 4, words, size=12)
    below = 14 + 3 * LANE + 38
    shapes = (((0, 0), (-22, 34), (22, 34)), ((0, 0), (0, 28), (0, 56)), ((0, 0), (0, 28), (0, 56)))
    parents = ((-1, 0, 0), (-1, 0, 1), (-1, 0, 1))
    notes = ("two children", "one step deeper", "+1 up the path")
    new = ({1, 2}, {2}, set())
    for number, points in enumerate(shapes):
        x = LANE_LEFT + 72 + number * SLOT
        for i, (dx, dy) in enumerate(points):
            if parents[number][i] >= 0:
                px, py = points[parents[number][i]]
                ends = (x + px, below + py + 9, x + dx, below + dy - 9)
                if number == 2:  # the return goes up
                    ends = (x + dx, below + dy - 9, x + px, below + py + 10)
                    yield arrow(*ends)
                else:
                    yield (
                        f'<line x1="{ends[0]}" y1="{ends[1]}" x2="{ends[2]}" y2="{ends[3]}" '
                        f'stroke="{LINE}"/>'
                    )
        for i, (dx, dy) in enumerate(points):
            fill = COLORS[number] if i in new[number] or number == 2 else "#ffffff"
            yield f'<circle cx="{x + dx}" cy="{below + dy}" r="8" fill="{fill}" stroke="{LINE}"/>'
        yield text(x, below + 84, notes[number], size=12, color=PALE)
    x = LANE_LEFT + 10 + 3 * SLOT
    yield text(x + 96, below + 32, "next tick", size=12, color=PALE, anchor="end")


PAGE_SIZE, CELL = 4, 22
SEGMENTS = (("instruction", 7), ("observation", 5))
"""The segments that all branches share: name and number of tokens."""
REPLIES = (("reply a", 6), ("reply b", 3), ("reply c", 5))


def pages_and_branches() -> str:
    """Returns three branches of one state: their segments, the pool and their page tables.

    The prefix cache of the engine gives out the pages.
    """
    cache = PrefixCache(num_pages=12, page_size=PAGE_SIZE, chunk_tokens=PAGE_SIZE)
    segments = tuple(np.full(count, i, np.int32) for i, (_, count) in enumerate(SEGMENTS))
    leaf = cache.find(request.TokenSequence(segments=segments))
    cache.reserve([leaf])
    shared, fills = cache.pages_before(leaf, leaf.end)
    owners: dict[int, tuple[int, int]] = {}  # page -> its segment's number and its filled tokens
    for node_number, node in enumerate(leaf.path()):
        owners.update({page: (node_number, fills[shared.index(page)]) for page in node.pages})
    tables = []
    for number, (_, count) in enumerate(REPLIES):
        own = cache.allocate(-(-count // PAGE_SIZE))
        for i, page in enumerate(own):
            owners[page] = (len(SEGMENTS) + number, min(PAGE_SIZE, count - i * PAGE_SIZE))
        tables.append([*shared, *own])
    parts = [*_segments(), *_pool(owners), *_tables(tables, owners)]
    return svg(620, 462, "Pages and branches", parts)


def _segments() -> Iterator[str]:
    """Yields the tree of segments: the shared ones in a row, and the replies that branch off."""
    yield text(24, 30, "segments: one prefix, three branches", size=13, color=PALE, anchor="start")
    x = 24
    for number, (name, count) in enumerate(SEGMENTS):
        yield box(x, 76, 18 * count + 10, 34, COLORS[number])
        yield text(x + 9 * count + 5, 98, name, size=12)
        yield text(x + 9 * count + 5, 126, f"{count} tokens", size=12, color=PALE)
        x += 18 * count + 10
        if number == 0:
            yield arrow(x, 93, x + 20, 93)
            x += 22
    for number, (name, count) in enumerate(REPLIES):
        y = 48 + number * 42
        yield arrow(x, 93, x + 56, y + 15)
        yield box(x + 58, y, 18 * count + 10, 30, COLORS[len(SEGMENTS) + number])
        yield text(x + 58 + 9 * count + 5, y + 20, name, size=12)
        yield text(x + 180, y + 20, f"{count} tokens", size=12, color=PALE, anchor="start")


def _pool(owners: dict[int, tuple[int, int]]) -> Iterator[str]:
    """Yields the pool: pages of four tokens, filled as far as their segment goes."""
    words = f"pool: pages of {PAGE_SIZE} tokens; a segment always begins a page"
    yield text(24, 204, words, size=13, color=PALE, anchor="start")
    for page in range(12):
        x = 24 + page * 48
        yield from _page(x, 216, 40, page, owners.get(page))
        yield text(x + 20, 270, str(page), size=12, color=PALE)


def _page(
    x: float, y: float, width: float, page: int, owner: tuple[int, int] | None
) -> Iterator[str]:
    """Yields one page with a stripe for each token, and its edge."""
    if owner is not None:
        number, fill = owner
        for token in range(fill):
            yield (
                f'<rect x="{x + token * width / PAGE_SIZE:g}" y="{y}" '
                f'width="{width / PAGE_SIZE:g}" height="36" fill="{COLORS[number]}" '
                'stroke="#d0d7de"/>'
            )
        yield f'<rect x="{x}" y="{y}" width="{width}" height="36" fill="none" stroke="{LINE}"/>'
    else:
        yield dashed(x, y, width, 36)


def _tables(tables: Sequence[Sequence[int]], owners: dict[int, tuple[int, int]]) -> Iterator[str]:
    """Yields the page table of each branch."""
    words = "page tables: the branches name the same pages, and their own"
    yield text(24, 304, words, size=13, color=PALE, anchor="start")
    for row, table in enumerate(tables):
        y = 316 + row * 38
        yield text(24, y + 21, REPLIES[row][0], size=12, anchor="start")
        for i, page in enumerate(table):
            yield box(84 + i * 48, y, 40, 30, COLORS[owners[page][0]])
            yield text(84 + i * 48 + 20, y + 20, str(page), size=12)
    yield dashed(78, 310, 4 * 48 + 4, 3 * 38 + 4)
    yield text(78 + 98, 446, "read once for all three", size=12, color=PALE)


HOLDS = {
    "core": "records, protocols, errors; no JAX",
    "runtime": "processes, sharding, checkpoints, run folder",
    "model": "Llama and relatives, heads",
    "data": "chats, trees, packing",
    "envs": "nine environments",
    "engine": "tokens in, tokens out",
    "clients": "HTTP client of served models",
    "agent": "a policy of a model or a server",
    "reward": "reward models as scorers",
    "search": "trees, rollouts, methods, labels",
    "train": "one update, its loop, losses",
    "evaluation": "methods over tasks, statistics, report",
    "pipeline": "configuration, stages, runner",
    "plan": "does a stage fit?",
    "serve": "reward model over HTTP",
    "launch": "a run on other hosts",
    "cli": "commands",
    "testing": "a toy environment",
}
"""The content of each package in a few words."""
PYPROJECT = FOLDER.parent.parent / "pyproject.toml"


def floors() -> str:
    """Returns the floors of the package as import-linter's contract has them."""
    contracts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]
    [layers] = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    width, height, gap = 620, 46, 8
    parts = []
    for row, layer in enumerate(layers):
        names = [name.strip() for name in layer.split("|")]
        y = 20 + row * (height + gap)
        parts.append(text(30, y + 28, str(len(layers) - 1 - row), size=14, color=PALE))
        each = (width - 74 - gap * (len(names) - 1)) / len(names)
        for i, name in enumerate(names):
            x = round(50 + i * (each + gap))
            parts.append(box(x, y, round(each), height, COLORS[(len(layers) - 1 - row) % 6]))
            parts.append(text(x + each / 2, y + 19, f"{name}/", size=14))
            parts.append(text(x + each / 2, y + 37, HOLDS[name], size=11, color=PALE))
    bottom = 20 + len(layers) * (height + gap)
    parts.append(text(width / 2, bottom + 14, "imports go down only", size=12, color=PALE))
    return svg(width, bottom + 28, "The floors of the package", parts)


FIGURES = {
    "pipeline.svg": pipeline,
    "search_tick.svg": search_tick,
    "pages.svg": pages_and_branches,
    "packed_tree.svg": packed_tree,
    "floors.svg": floors,
}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
