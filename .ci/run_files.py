"""The reference of the files of a run, made from the records of the package.

python .ci/run_files.py                  exit status 1 if the page is not up to date
python .ci/run_files.py --write          writes docs/reference/files.md
python .ci/run_files.py --examples RUN   takes the examples from a run of configs/tiny.yaml
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypedDict

from public_names import parsed

from agentrm_jax.clients.probe import ServerFacts
from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.data.states import LabelledTree
from agentrm_jax.data.trees import FailureRecord, IterationRecord, NodeRecord
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.evaluation import report_rows, rows
from agentrm_jax.evaluation.calibration import Calibration
from agentrm_jax.evaluation.episodes import Episode
from agentrm_jax.pipeline import (
    acting,
    calibrate,
    evaluate,
    experts,
    explore,
    fit_model,
    label,
    sample,
    sft,
    train_implicit,
    train_reward,
)
from agentrm_jax.runtime.activity import ActivityRecord
from agentrm_jax.runtime.json_lines import read_json_lines
from agentrm_jax.runtime.stage_files import FileRecord
from agentrm_jax.search.rollouts import Rollout

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docs" / "reference"
PAGE, EXAMPLES = FOLDER / "files.md", FOLDER / "files_examples.json"
Form = Literal["object", "rows", "lines", "records", "other"]


class Versions(TypedDict):
    """The versions that a stage was made with.

    Attributes:
      python: Version of Python.
      platform: Operating system.
      packages: Versions of the packages that can change a result.
      git_commit: Commit of the checkout, with `-dirty` if it was changed; null for an installed
        package.
      backend: JAX's backend: `cpu`, `gpu` or `tpu`.
      device_kind: Name of the devices.
      device_count: Devices of all processes.
      process_count: Number of processes.
      cpu_count: CPU cores of the machine.
    """

    python: str
    platform: str
    packages: dict[str, str]
    git_commit: str | None
    backend: str
    device_kind: str
    device_count: int
    process_count: int
    cpu_count: int


class _OptionalOfStages(TypedDict, total=False):
    tokens: int
    summary: Mapping[str, Any]


class StageRecord(_OptionalOfStages):
    """The record of a stage.

    Attributes:
      stage: Name of the stage.
      depends_on: The part of the configuration that decides the output of the stage.
      made_with: The versions of each start, in order if it was resumed elsewhere.
      seconds: Seconds of work, those of interrupted runs included.
      tokens: Tokens decoded, those of interrupted runs included; absent if there are none.
      summary: The summary of the stage, see Summaries below; absent in `seconds.json`.
      sha256: The sha256 of the rest of the record, in any order of keys.
    """

    stage: str
    depends_on: Mapping[str, Any]
    made_with: list[Versions]
    seconds: float
    sha256: str


class EveryStage(TypedDict):
    """Keys of the summary of every stage.

    Attributes:
      compilations: Programs that were compiled since the last start.
      compile_seconds: Seconds that this took.
    """

    compilations: int
    compile_seconds: float


class MetricsRow(TypedDict, total=False):
    """The metrics of the updates since the row before; the loss decides which keys are there.

    Attributes:
      stage: The training stage.
      update: Number of the update, from 1.
      seconds: Seconds since the stage was started.
    """

    stage: str
    update: int
    seconds: float
    loss: float
    accuracy: float
    squared_error: float
    correlation: float
    ranking_loss: float
    sibling_accuracy: float
    observation_loss: float
    value: float
    target: float
    grad_norm: float
    held_out_loss: float


class ModelRecord(TypedDict):
    """The kind and the shape of a model.

    Attributes:
      kind: `policy` (an implicit reward model too) or `reward`.
      config: The keys of a Hugging Face `config.json`; `value_head` of a reward model has the kind
        of the head and its fields.
    """

    kind: str
    config: Mapping[str, Any]


class Manifest(TypedDict):
    """The files of a folder.

    Attributes:
      written_by: `agentrm_jax`.
      sha256: The sha256 of each file, by its name in the folder.
    """

    written_by: str
    sha256: dict[str, str]


class TrainedOn(TypedDict):
    """The problems that a reward model was trained on.

    Attributes:
      problems: Canonical forms, see `problem` of a task.
    """

    problems: list[str]


class ChatRecord(TypedDict, total=False):
    """The chat format: token ids and texts around turns. Keys with a default are absent.

    Attributes:
      begin: Before the conversation.
      user_open: Before a text of the user.
      user_close: After it.
      assistant_open: Before a reply.
      assistant_close: After a reply; its first token ends a reply.
      pad_id: The padding token.
      version: Version of the format.
    """

    begin: list[int]
    user_open: list[int]
    user_close: list[int]
    assistant_open: list[int]
    assistant_close: list[int]
    pad_id: int
    version: int


class TreeBegin(TypedDict):
    """The line that begins a tree.

    Attributes:
      kind: `begin`.
      task: The task that is searched.
      first_observation: The environment's first observation, the state of the root.
    """

    kind: str
    task: Task
    first_observation: str


class _OptionalOfTreeEnds(TypedDict, total=False):
    failures: list[FailureRecord]


class TreeEnd(_OptionalOfTreeEnds):
    """The line that ends a tree.

    Attributes:
      kind: `finish`.
      task_id: The task of the tree.
      error: Why the search ended early; null if it did not.
      failures: Candidates that failed after the last iteration; absent if there are none.
    """

    kind: str
    task_id: str
    error: str | None


class Scale(TypedDict):
    """The moments of a member of an ensemble, on training trajectories.

    Attributes:
      mean: Mean of its scores.
      deviation: Their standard deviation.
      trajectories: Number of trajectories.
      made_from: A sha256 of the options and stages that they depend on.
    """

    mean: float
    deviation: float
    trajectories: int
    made_from: str


BASES: dict[Any, tuple[Any, ...]] = {
    sft.SftSummary: (fit_model.FitSummary,),
    train_reward.RewardSummary: (fit_model.FitSummary,),
    train_implicit.ImplicitSummary: (fit_model.FitSummary,),
    MetricsRow: (fit_model.FitSummary,),
    sample.SampleSummary: (sample.RolloutSummary, acting.AgentName),
    explore.ExploreSummary: (explore.TreeSummary, acting.AgentName),
    evaluate.EvaluateSummary: (acting.AgentName,),
    calibrate.CalibrateSummary: (acting.AgentName,),
    rows.Report: (rows.ReportParts, report_rows.OptionalParts),
}
"""Records whose docstrings describe inherited fields: a `TypedDict` does not know its bases."""

SUMMARIES: dict[str, Any] = {
    "experts": experts.ExpertsSummary,
    "sft": sft.SftSummary,
    "explore": explore.ExploreSummary,
    "label": label.LabelSummary,
    "train-rm": train_reward.RewardSummary,
    "sample": sample.SampleSummary,
    "train-implicit": train_implicit.ImplicitSummary,
    "calibrate": calibrate.CalibrateSummary,
    "evaluate": evaluate.EvaluateSummary,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """A file of a run, or several of one form.

    Attributes:
      path: Its path in the folder of the run; words in capitals stand for any name.
      by: The stage or command that writes it.
      text: Its use in a sentence or two.
      form: `object`: one JSON object; `rows`: a JSON list of objects; `lines`: an object a line;
        `records`: the same with a checksum in each line; `other`: not JSON, or of another format.
      kinds: Classes of the object or of the items: one of them fits each.
      by_name: Whether the object has records of its class under names of its own.
    """

    path: str
    by: str
    text: str
    form: Form = "other"
    kinds: tuple[Any, ...] = ()
    by_name: bool = False

    def matches(self, path: str) -> bool:
        """Returns whether a path in the folder of a run is such a file."""
        pattern = re.escape(self.path).replace("STAGE", "(?:reward/)?[^/]+")
        pattern = re.sub(r"[A-Z]{3,}", "[^/]+", pattern).replace(r"/\.\.\.", "/.+")
        return re.fullmatch(pattern, path) is not None


_TRAINED = "`sft`, `train-rm`, `train-implicit`"
FILES = (
    RunFile(path="config.resolved.yaml", by="each stage", text="The configuration with all "
            "defaults, as the newest stage began with it: see "
            "[Configuration](configuration.md)."),
    RunFile(path="versions.json", by="each stage", text="The versions of the newest stage.",
            form="object", kinds=(Versions,)),
    RunFile(path="metrics.jsonl", by="training stages", text="Metrics, a row for every "
            "`fit.metrics_every` updates. A resumed stage writes some updates again; the later "
            "row counts.", form="lines", kinds=(MetricsRow,)),
    RunFile(path="STAGE/stage.json", by="each stage, at its end", text="The record of a finished "
            "stage; a run that finds it skips the stage. The folders are `experts`, `sft`, "
            "`trees`, `states`, `reward/explicit`, `samples`, `reward/implicit`, `calibrate` and "
            "`eval`.", form="object", kinds=(StageRecord,)),
    RunFile(path="STAGE/seconds.json", by="each stage, at work", text="The same without a "
            "summary, every five seconds; replaced by `stage.json`.", form="object",
            kinds=(StageRecord,)),
    RunFile(path="STAGE/.activity.json", by="each stage, at work", text="The activity that "
            "`agentrm watch` shows; removed at the end.", form="object", kinds=(ActivityRecord,)),
    RunFile(path="experts/dataset/...", by="`experts`", text="A data set of TFDS (array_record), "
            "with a manifest. The field `record` of an example is a trajectory as JSON; `outcome` "
            "and `num_steps` are its return and length.", kinds=(Trajectory,)),
    RunFile(path="states/dataset/...", by="`label`", text="A data set of TFDS (array_record), "
            "with a manifest. The field `record` of an example is a labelled tree as JSON; "
            "`num_nodes` and `num_labels` count its states.", kinds=(LabelledTree,)),
    RunFile(path="STAGE/model/model.json", by=_TRAINED,
            text="The kind and the shape of the model.", form="object", kinds=(ModelRecord,)),
    RunFile(path="STAGE/model/tokenizer.json", by=_TRAINED, text="The tokenizer, in the format "
            "of Hugging Face's `tokenizers`."),
    RunFile(path="STAGE/model/chat.json", by=_TRAINED, text="The chat format of the tokenizer.",
            form="object", kinds=(ChatRecord,)),
    RunFile(path="STAGE/model/manifest.json", by=_TRAINED, text="Checksums of all other files of "
            "the folder.", form="object", kinds=(Manifest,)),
    RunFile(path="STAGE/model/trained_on.json", by="`train-rm`", text="The problems of the trees "
            "that were trained on; `eval-rm` leaves them out.", form="object", kinds=(TrainedOn,)),
    RunFile(path="STAGE/model/params/...", by=_TRAINED, text="The parameters, an Orbax "
            "checkpoint."),
    RunFile(path="STAGE/checkpoints/...", by="training stages, at work", text="Orbax checkpoints "
            "of the training, named by their update; removed when the stage ends."),
    RunFile(path="reward/implicit/reference.npz", by="`train-implicit`", text="NumPy: "
            "log-probabilities of the reference for each token, float32 [rows, length]."),
    RunFile(path="trees/trees.jsonl", by="`explore`", text="The search trees: a line begins a "
            "tree, one follows for each finished iteration, one ends it. Trees are interleaved.",
            form="records", kinds=(TreeBegin, IterationRecord, TreeEnd)),
    RunFile(path="samples/rollouts.jsonl", by="`sample`", text="Whole trajectories of training "
            "tasks.", form="records", kinds=(Rollout,)),
    RunFile(path="calibrate/thresholds.json", by="`calibrate`", text="The thresholds that were "
            "chosen for test-time methods.", form="rows", kinds=(Calibration,)),
    RunFile(path="calibrate/METHOD/CANDIDATE/rollouts.jsonl", by="`calibrate`", text="The "
            "trajectories of a method with one setting of its thresholds.", form="records",
            kinds=(Rollout,)),
    RunFile(path="eval/METHOD/rollouts.jsonl", by="`evaluate`", text="The trajectories of a "
            "test-time method, as they end. The folder is `METHOD@PLACE` for other places of the "
            "score, `METHOD+seedS` for other sampling seeds.", form="records", kinds=(Rollout,)),
    RunFile(path="eval/METHOD/episodes.jsonl", by="`evaluate`", text="One method on one task a "
            "line; `best_of_n/` has the baselines that choose among its trajectories too.",
            form="records", kinds=(Episode,)),
    RunFile(path="eval/METHOD/results.json", by="`evaluate`", text="Means over tasks.",
            form="rows", kinds=(rows.ResultRow,)),
    RunFile(path="eval/METHOD/scores.json", by="`evaluate`", text="The scores of the reward models "
            "for the trajectories of best-of-n.", form="rows", kinds=(rows.ScoreRow,)),
    RunFile(path="eval/METHOD/by_n.json", by="`evaluate`", text="Best-of-n for every n.",
            form="rows", kinds=(rows.ByNRow,)),
    RunFile(path="eval/METHOD/best_of_k.json", by="`evaluate`", text="Best-of-k on each task, "
            "from which seeds and tokens are compared.", form="rows",
            kinds=(report_rows.BestOfKRow,)),
    RunFile(path="eval/probe.json", by="`evaluate`", text="By environment, whether the last "
            "observation gives the outcome away.", form="object", kinds=(report_rows.ProbeRow,),
            by_name=True),
    RunFile(path="results.json", by="`report`", text="The rows of all `eval/METHOD/results.json`.",
            form="rows", kinds=(rows.ResultRow,)),
    RunFile(path="report.json", by="`report`", text="The content of the report.", form="object",
            kinds=(rows.Report,)),
    RunFile(path="report.html", by="`report`", text="The same as one page: see "
            "[Report](../guides/report.md)."),
    RunFile(path="servers.json", by="stages that ask a server", text="By `agent`, `judge` or the "
            "name of a reward model, a list with the features of its server, each with its `url`.",
            kinds=(ServerFacts,)),
    RunFile(path="reward_scales.json", by="ensembles with `scale: standard`", text="By member, the "
            "moments of its scores.", form="object", kinds=(Scale,), by_name=True),
    RunFile(path="tensorboard/...", by="training stages", text="Event files, with `trackers: "
            "[tensorboard]`."),
    RunFile(path="errors/TIME.txt", by="any command", text="The traceback of a command that failed "
            "for another reason than a mistake of the user."),
    RunFile(path=".lock", by="any command", text="Empty; held while a command works in the folder.")
)  # fmt: skip
_HEAD = """\
# Files of a run

Written by `python .ci/run_files.py --write` from the package. Paths are relative to the folder of
the run. Words in capitals stand for any name, `...` for all files below. Examples are of a run of
`configs/tiny.yaml`; long texts and lists are cut (`...`, and lists to their first items). [On
disk](../design/on_disk.md) says how files are protected and when they are compared.

- A file `.json` is written whole or not at all. Texts are UTF-8; numbers are finite.
- A line of a file with checksums is `{"crc32": "0a1b2c3d", "record": {...}}`: the CRC-32 of the
  record's text. A last line that was torn by a kill is cut off when the file is opened again.
- With several processes, each writes `NAME.part0.jsonl` and so on, which are gathered when the
  stage ends.
- A field in brackets may be absent.
"""
_FORMS = {
    "object": "A JSON object.",
    "rows": "A JSON list of objects.",
    "lines": "JSON lines: an object a line.",
    "records": "JSON lines with checksums; the table has the fields of `record`.",
    "other": "",
}


def page() -> str:
    """Returns the text of docs/reference/files.md."""
    examples = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    blocks, inner = [_HEAD], {}
    first: dict[Any, str] = {}
    for file in FILES:
        blocks.append(f"## `{file.path}`\n")
        form = "A JSON object with records by name." if file.by_name else _FORMS[file.form]
        known = [first[kind] for kind in file.kinds if kind in first]
        if known:
            form = f"{form} It has the fields of `{known[0]}`."
        blocks.append(_filled(f"By {file.by}. {file.text} {form}") + "\n")
        for kind in file.kinds if not known else ():
            first[kind] = file.path
            if len(file.kinds) > 1:
                blocks.append(_filled(parsed(kind).text.splitlines()[0]) + "\n")
            blocks.append("\n".join(_table(kind, inner)) + "\n")
        shown = [] if known else examples.get(file.path, [])
        blocks += [f"```json\n{_shown(example)}\n```\n" for example in shown]
    blocks.append("## Summaries\n\nThe key `summary` of a `stage.json`.\n")
    for name, kind in {"every stage": EveryStage, **SUMMARIES}.items():
        title = f"`{name}`" if name in SUMMARIES else "Every stage"
        blocks.append(f"### {title}\n\n" + "\n".join(_table(kind, inner)) + "\n")
    blocks.append("## Records\n\nObjects within the files above.\n")
    done: set[str] = set()
    while todo := {name: kind for name, kind in inner.items() if name not in done}:
        for name, kind in todo.items():
            done.add(name)
            text = _filled(" ".join(parsed(kind).text.split("\n\n")[0].split()))
            blocks.append(f"### {name}\n\n{text}\n\n" + "\n".join(_table(kind, inner)) + "\n")
    return "\n".join(blocks).rstrip() + "\n"


def descriptions(kind: Any) -> dict[str, str]:
    """Returns the meaning of each field of a record.

    Raises:
      ValueError: A field has no description.
    """
    texts: dict[str, str] = {}
    for each in (*BASES.get(kind, ()), kind):
        entries = parsed(each).sections.get("Attributes", "")
        for entry in re.split(r"\n(?=\w)", entries):
            name, _, text = entry.partition(":")
            texts[name] = " ".join(text.split())
    if lacking := [name for name in fields(kind) if not texts.get(name)]:
        raise ValueError(f"{kind.__name__}: Attributes lacks {', '.join(lacking)}")
    return {name: texts[name] for name in fields(kind)}


def fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Returns the type of each field of a record, and whether it may be absent."""
    hints = typing.get_type_hints(kind)
    if typing.is_typeddict(kind):
        return {name: (hint, name in kind.__optional_keys__) for name, hint in hints.items()}
    rare = _RARE.get(kind, ())
    return {f.name: (hints[f.name], f.name in rare) for f in dataclasses.fields(kind)}


_RARE: dict[Any, tuple[str, ...]] = {
    Step: ("stopped",),
    IterationRecord: ("further", "failures", "closed", "expanded"),
    Rollout: ("search",),
    Episode: ("options", "score_at", "sampling_seed"),
}
"""Fields of dataclasses that are written only if they hold something."""


def _table(kind: Any, inner: dict[str, Any]) -> Iterator[str]:
    yield "| field | type | meaning |\n|---|---|---|"
    if kind is IterationRecord:
        yield "| `kind` | text | `iteration`. |"
    texts = descriptions(kind)
    for name, (hint, optional) in sorted(fields(kind).items(), key=lambda item: item[1][1]):
        shown = f"[`{name}`]" if optional else f"`{name}`"
        yield f"| {shown} | {_type(hint, inner)} | {_cell(texts[name])} |"


_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any"}


def _type(hint: Any, inner: dict[str, Any]) -> str:
    """The name of a type for readers; records are noted in `inner` and linked."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if p is type(None) else _type(p, inner) for p in parts)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (tuple, list):
        return f"list of {_type(parts[0], inner)}"
    if origin is not None and issubclass(origin, Mapping):
        return "object" if parts[1] is Any else f"{_type(parts[1], inner)}, by name"
    name = _NAMES.get(hint, hint.__name__.removesuffix("Record"))
    inner.setdefault(name, hint)
    return f"[{name}](#{name.lower()})"


_NAMES: dict[Any, str] = {FileRecord: "StageFile", NodeRecord: "TreeNode"}


def _cell(text: str) -> str:
    text = re.sub(r"\bNone\b", "null", text)
    return text.replace("|", "&#124;")


def _filled(text: str) -> str:
    import textwrap

    return textwrap.fill(
        " ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False
    )


def _shown(value: Any, indent: int = 0) -> str:
    """JSON whose lines are filled with as many items as they hold."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= _WIDTH or not isinstance(value, dict | list) or not value:
        return line
    names = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""]
    values = value.values() if isinstance(value, dict) else value
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines, pad = [opening], " " * (indent + 1)
    for name, each in zip(names * (len(value) // len(names)), values, strict=True):
        item = f"{name}{json.dumps(each, ensure_ascii=False)}"
        if len(lines[-1]) + len(item) + 3 + (indent if len(lines) == 1 else 0) > _WIDTH:
            item = name + _shown(each, indent + 1)
            lines.append(pad)
        lines[-1] += f"{item}, "
    return "\n".join(text.rstrip() for text in lines)[:-1] + closing


_WIDTH = 98


def file_of(path: str) -> RunFile | None:
    """Returns the entry of a file in the folder of a run, None if the page lacks it."""
    return next((file for file in FILES if file.matches(path)), None)


def items(file: RunFile, path: pathlib.Path) -> list[Any]:
    """Returns the JSON objects of a file."""
    if file.form == "records":
        return list(read_json_lines(path))
    text = path.read_text(encoding="utf-8")
    if file.form == "lines":
        return [json.loads(line) for line in text.splitlines()]
    value = json.loads(text)
    if file.by_name:
        return list(value.values())
    return [value] if file.form == "object" else value


def check(file: RunFile, value: Any) -> Any:
    """Returns the class of the file that an object fits.

    Raises:
      ValueError: It fits none; the line names the field.
    """
    reasons = []
    for kind in file.kinds:
        known = dict(value)
        if kind is IterationRecord:
            known.pop("kind", None)
        try:
            from_json(kind, known)
            if kind is StageRecord and "summary" in value:
                own = {k: v for k, v in value["summary"].items() if k != "compilations"}
                if "compile_seconds" not in fields(SUMMARIES[value["stage"]]):
                    own.pop("compile_seconds")
                from_json(SUMMARIES[value["stage"]], own)
        except ValueError as error:
            reasons.append(f"{kind.__name__}: {error}")
        else:
            return kind
    raise ValueError("; ".join(reasons))


def examples(run: pathlib.Path) -> dict[str, list[Any]]:
    """Returns one object of each class of each file of a run, with long texts and lists cut."""
    found: dict[str, dict[Any, Any]] = {}
    for path in sorted(run.rglob("*")):
        file = file_of(path.relative_to(run).as_posix()) if path.is_file() else None
        if file is None or file.form == "other":
            continue
        for value in items(file, path):
            kept = found.setdefault(file.path, {})
            kind = check(file, value)
            if kind not in kept or _preferred(value, kept[kind]):
                kept[kind] = value
    order = [file.path for file in FILES if file.path in found]
    return {path: [_cut(value) for value in found[path].values()] for path in order}


def _preferred(new: Any, old: Any) -> bool:
    """Whether an object shows more than another one: a node or a reward model."""
    keys = ("nodes", "reward_model", "summary")
    more = [bool(old.get(key)) - bool(new.get(key)) for key in keys]
    return min(more) < 0 or (max(more) == 0 and len(json.dumps(new)) < len(json.dumps(old)))


def _cut(value: Any, depth: int = 0, key: str = "") -> Any:
    if isinstance(value, str):
        if key == "platform":
            return "Linux-6.18.44-x86_64-with-glibc2.36"
        return value if len(value) <= 64 else f"{value[:52]}..."
    if isinstance(value, dict):
        most = 3 if key in _CUT else 25 if depth < 2 else 6
        kept = {name: _cut(each, depth + 1, name) for name, each in list(value.items())[:most]}
        return kept if len(kept) == len(value) else {**kept, "...": "..."}
    if isinstance(value, list):
        most = 4 if all(isinstance(each, int | float) for each in value) else 1
        return [_cut(each, depth + 1) for each in value[:most]]
    return float(f"{value:.4g}") if isinstance(value, float) else value


_CUT = ("depends_on", "files", "packages", "sha256", "made_with")
"""Keys whose objects are cut to three keys in examples."""


def main() -> int:
    """Writes or compares the page; returns the exit status."""
    if "--examples" in sys.argv:
        run = pathlib.Path(sys.argv[sys.argv.index("--examples") + 1])
        text = json.dumps(examples(run), indent=1, ensure_ascii=False)
        EXAMPLES.write_text(text + "\n", encoding="utf-8")
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE}: is not up to date; run python .ci/run_files.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
