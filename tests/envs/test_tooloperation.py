"""The family of operations: tasks, episodes, goals of our own, labels of others, experts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Task, is_test_problem
from agentrm_jax.envs.tools.calls import FORMAT_ERROR
from agentrm_jax.envs.tools.tooloperation import ToolOperation

FAMILY = ToolOperation()
GENERATED = ("todo_generated", "sheet_generated")
TODO = FAMILY.tasks("train", kinds=["todo_generated"], n=60)
SHEET = FAMILY.tasks("train", kinds=["sheet_generated"], n=60)
REAL = os.environ.get("AGENTRM_DATA", "")


def started(of):
    episode = FAMILY.create()
    return episode, episode.reset(of)


def solved(of):
    """The answers to the expert's actions."""
    turns = FAMILY.demonstrate(of)
    assert turns is not None
    episode, _ = started(of)
    return [episode.step(turn.action) for turn in turns]


def own_task(projects, goal, parts, state=None, only_success=True, max_steps=30):
    spec = {"tool": "todo", "goal": goal, "projects": projects, "today": "2015-06-01",
            "city": "Ghent", "parts": parts, "state": state, "only_success": only_success,
            "seed": "7"}  # fmt: skip
    return dataclasses.replace(TODO[0], spec=spec, max_steps=max_steps)


PROJECTS = [
    {"name": "Errands", "is_favorite": False, "tasks": [
        {"content": "Post the parcel", "description": "- Place: Town hall", "priority": 2,
         "due_date": "2015-06-09", "duration": 15, "duration_unit": "minute"},
        {"content": "Fetch the bread", "description": "- Place: Mill", "priority": 1,
         "due_date": "2015-05-30", "duration": 1, "duration_unit": "day"}]},
    {"name": "Empty", "is_favorite": False, "tasks": []},
]  # fmt: skip


def ids(of):
    """Of the first project and its two tasks."""
    episode, _ = started(of)
    projects = eval_json(episode.step("get_projects with Action Input: {}").observation)
    said = f'get_tasks with Action Input: {{"project_id": "{projects[0]["id"]}"}}'
    return projects[0]["id"], *(t["id"] for t in eval_json(episode.step(said).observation))


def eval_json(text):
    return json.loads(text.replace("'", '"').replace("False", "false").replace("True", "true"))


def test_the_family_is_one():
    assert isinstance(FAMILY, EnvironmentFamily)
    assert FAMILY.missing() is None


def test_generated_kinds_need_no_files(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    assert tuple(FAMILY.kinds()) == GENERATED
    assert FAMILY.counts() == {"train": None, "test": None}
    assert len(FAMILY.tasks("test", kinds=FAMILY.kinds(), n=6)) == 6
    assert FAMILY.tasks("paper", kinds=GENERATED, n=6) == []


@pytest.mark.parametrize("kind", ["todo", "sheet"])
def test_missing_files_are_named(monkeypatch, tmp_path, kind):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"{kind}\.jsonl: not found; get it from https"):
        FAMILY.tasks("test", kinds=[kind], n=1)
    with pytest.raises(UserError, match=r"tool-operation/test\.jsonl: not found"):
        FAMILY.tasks("paper", kinds=[kind], n=1)


def test_unknown_kind_names_the_kinds():
    with pytest.raises(UserError, match=r"no kind 'mail': choose from todo, sheet"):
        FAMILY.tasks("train", kinds=["mail"], n=1)


def test_tasks_are_stable_distinct_and_begin_alike():
    short, long = (FAMILY.tasks("train", kinds=GENERATED, n=n) for n in (10, 40))
    assert long[:10] == short
    assert [t.kind for t in short[:4]] == [*GENERATED, *GENERATED]
    assert len({t.problem for t in long}) == len({t.task_id for t in long}) == 40
    other = FAMILY.tasks("train", kinds=GENERATED, n=40, seed=1)
    assert not {t.problem for t in other} & {t.problem for t in long}


def test_splits_share_no_problem():
    train = {t.problem for t in FAMILY.tasks("train", kinds=GENERATED, n=120)}
    test = {t.problem for t in FAMILY.tasks("test", kinds=GENERATED, n=60)}
    assert (len(train), len(test)) == (120, 60)
    assert all(map(is_test_problem, test))
    assert not train & test


@pytest.mark.parametrize("tasks", [TODO, SHEET], ids=GENERATED)
def test_experts_solve_their_goals_and_no_action_is_idle(tasks):
    for each in tasks:
        answers = solved(each)
        assert all(answer.valid for answer in answers)
        assert [answer.success for answer in answers] == [False] * (len(answers) - 1) + [True]
        assert answers[-1].done
        assert sum(answer.reward for answer in answers) == pytest.approx(1.0)


@pytest.mark.parametrize("tasks", [TODO, SHEET], ids=GENERATED)
def test_to_finish_at_once_solves_no_generated_goal_that_asks_for_a_change(tasks):
    changing = [t for t in tasks if t.spec["tool"] == "sheet" or t.spec["parts"] == ["done"]]
    assert len(changing) > 10
    for each in changing:
        episode, _ = started(each)
        last = episode.step('finish with Action Input: {"answer": "done"}')
        assert last.done
        assert not last.success


def test_all_kinds_of_goals_are_drawn():
    todo = FAMILY.tasks("train", kinds=["todo_generated"], n=200)
    assert len({t.spec["goal"].split()[0] for t in todo}) >= 8
    assert {type(t.spec["parts"][0]) for t in todo} == {str, int, list}
    actions = {a.split()[0] for t in SHEET for _, a in t.spec["steps"]}
    assert actions == {"delete_batch_data", "filter_cells", "finish", "freeze_data",
                       "insert_rows", "sort_sheet_by_col", "update_cell",
                       "update_cell_by_formula"}  # fmt: skip


def test_first_observation_states_goal_tools_and_sheet():
    _, text = started(SHEET[0])
    goal, tools, *lines = text.split("\n")
    assert goal == f"Goal: {SHEET[0].spec['goal']}"
    assert tools == "Tools:"
    assert lines[0] == "- open_sheet(name): opens another sheet."
    assert lines[-2] == "You are now in Sheet1"
    assert lines[-1].startswith("[['")
    assert "answer" not in lines[-1]
    _, text = started(own_task(PROJECTS, " How many? ", [2]))
    assert text.startswith("Goal: How many?\nTools:\n- get_user_current_date():")
    assert text.endswith("take 'finish' action to end this goal.")


def test_what_a_to_do_list_answers():
    of = own_task(PROJECTS, "?", [2])
    project, parcel, bread = ids(of)
    assert project.isdecimal()
    assert len(project) == 10
    episode, _ = started(of)

    def say(name, **arguments):
        return episode.step(f"{name} with Action Input: {json.dumps(arguments)}").observation

    assert say("get_user_current_date") == "2015-06-01"
    assert say("get_user_current_location") == "Ghent"
    assert say("get_task_duration", task_id=bread) == str(
        {"id": bread, "content": "Fetch the bread", "duration": "1(day)"}
    )
    assert say("get_task_description", task_id=parcel) == str(
        {"id": parcel, "content": "Post the parcel", "description": "- Place: Town hall"}
    )
    shown = {"id": parcel, "order": 1, "content": "Post the parcel", "is_completed": False,
             "priority": 2, "due_date": "2015-06-09"}  # fmt: skip
    moved = {**shown, "due_date": "2015-07-01"}
    assert say("update_task", task_id=parcel, due_date="2015-07-01") == str(
        {"message": "Update the task successfully", "task": moved}
    )
    assert say("complete_task", task_id=int(parcel)) == str(
        {"message": "Complete task successfully.",
         "task": {k: v for k, v in moved.items() if k != "is_completed"}}
    )  # fmt: skip
    assert parcel not in say("get_tasks", project_id=project)
    assert "Fetch the bread" in say("delete_task", task_id=bread)
    assert say("get_tasks", project_id=project) == "[]"
    assert "'is_favorite': True" in say("update_project", project_id=project, is_favorite="True")
    assert say("check_valid_actions").startswith("You can use following valid actions: ['get_user")


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("", FORMAT_ERROR),
        ("get_projects", FORMAT_ERROR),
        ("get_projects with Action Input: {", "ERROR | Exception(Parameters in action input are"),
        ("open with Action Input: {}", "ERROR | Invalid action: open."),
        ("get_tasks with Action Input: {}", "ERROR | KeyError('project_id')"),
        ("get_tasks with Action Input: 3", "ERROR | TypeError("),
        ('get_tasks with Action Input: {"project_id": "1"}', "Project not found"),
        ('complete_task with Action Input: {"task_id": "1"}', "Task 1 is not exists."),
        ('get_task_duration with Action Input: {"task_id": []}', "Task not found"),
        ('finish with Action Input: {"answer": [1, "a"]}', "ERROR | TypeError("),
        ("Finish with Action Input: {}", "ERROR | Invalid action: Finish."),
    ],
)
def test_impossible_actions_are_answered(action, answer):
    episode, _ = started(own_task(PROJECTS, "?", [2]))
    transition = episode.step(action)
    assert transition.observation.startswith(answer)
    assert (transition.valid, transition.reward, transition.done) == (False, 0.0, False)


def test_dates_and_favourites_have_to_be_ones():
    of = own_task(PROJECTS, "?", [2])
    project, parcel, _ = ids(of)
    episode, _ = started(of)
    said = f'update_task with Action Input: {{"task_id": "{parcel}", "due_date": "tomorrow"}}'
    assert episode.step(said).observation == "Date is invalid"
    said = f'update_project with Action Input: {{"project_id": "{project}", "is_favorite": "5"}}'
    assert not episode.step(said).valid


def test_an_answer_s_type_counts_and_lists_are_sorted():
    for answer, good in (("2", True), ('"2"', False), ("3", False)):
        episode, _ = started(own_task(PROJECTS, "?", [2]))
        last = episode.step(f'finish with Action Input: {{"answer": {answer}}}')
        assert (last.done, last.success, last.reward) == (True, good, float(good))
    episode, _ = started(own_task(PROJECTS, "?", [["a", "b"]]))
    assert episode.step('finish with Action Input: {"answer": ["b", "a"]}').success


def test_a_state_has_to_be_as_it_is_wanted():
    of = own_task(PROJECTS, "?", ["done"])
    episode, _ = started(of)
    _, parcel, _ = ids(of)
    state = episode._world.state()
    state["tasks"] = state["tasks"][1:]
    of = own_task(PROJECTS, "?", ["done"], state)
    episode, _ = started(of)
    assert not episode.fork().step('finish with Action Input: {"answer": "done"}').success
    episode.step(f'complete_task with Action Input: {{"task_id": "{parcel}"}}')
    last = episode.step('finish with Action Input: {"answer": "done"}')
    assert (last.success, last.reward) == (True, 1.0)


def test_parts_pay_where_a_label_has_several():
    part = {"content": "Post the parcel", "description": "- Place: Town hall"}
    of = own_task(PROJECTS, "?", [part, "Town hall"], only_success=False)
    _, parcel, _ = ids(of)
    episode, _ = started(of)
    look = f'get_task_description with Action Input: {{"task_id": "{parcel}"}}'
    assert [episode.step(look).reward for _ in range(2)] == [0.5, 0.0]
    last = episode.step('finish with Action Input: {"answer": "Town hall"}')
    assert (last.reward, last.success) == (0.5, True)


def test_ids_differ_from_task_to_task():
    seen = set()
    for each in TODO[:20]:
        episode, _ = started(each)
        found = eval_json(episode.step("get_projects with Action Input: {}").observation)
        seen.add(found[0]["id"])
    assert len(seen) == 20


def test_steps_run_out():
    for each in (dataclasses.replace(TODO[0], max_steps=3), SHEET[0]):
        episode, _ = started(each)
        answers = [episode.step("wait") for _ in range(each.max_steps)]
        assert [a.done for a in answers] == [False] * (each.max_steps - 1) + [True]
        assert not any(a.success for a in answers)


SAID = st.one_of(
    st.text(max_size=20),
    st.sampled_from([a for t in (*TODO[:2], *SHEET[:4]) for _, a in t.spec["steps"]]),
    st.sampled_from([
        'update_cell with Action Input: {"position": "B2", "value": "=C3+1"}',
        'sort_sheet_by_col with Action Input: {"col_num": 3, "order": "des"}',
        'merge_cells with Action Input: {"start_position": "A2", "end_position": "B3"}',
        'insert_rows with Action Input: {"values_list": [["x"]], "row_idx": 2}',
    ]),
)  # fmt: skip


@settings(deadline=None)
@given(
    st.sampled_from([*TODO[:2], *SHEET[:4]]), st.lists(SAID, max_size=6), st.lists(SAID, max_size=4)
)
def test_any_text_is_answered_and_copies_stay_apart(of, before, after):
    episode, _ = started(of)
    for said in before:
        assert isinstance(episode.step(said).observation, str)
    left, right = episode.fork(), episode.fork().fork()
    answers = [left.step(said) for said in after]
    assert [right.step(said) for said in after] == answers
    assert [episode.step(said) for said in after] == answers


def test_a_task_is_plain_json():
    for each in (TODO[0], SHEET[0]):
        restored = Task(**json.loads(json.dumps(dataclasses.asdict(each))))
        assert started(restored)[1] == started(each)[1]
        assert FAMILY.demonstrate(restored) == FAMILY.demonstrate(each)


def test_the_prompt_s_example_is_what_happens():
    prompt = FAMILY.prompt()
    assert "with Action Input:" in prompt.instruction
    projects = [
        {"name": "Errands", "tasks": [{**PROJECTS[0]["tasks"][0], "due_date": "2016-03-09"}]}
    ]
    of = own_task(projects, prompt.example[0].split("\n")[0].removeprefix("Goal: "), ["No"])
    episode, first = started(of)
    assert first.split("\n")[0] == prompt.example[0].split("\n")[0]
    assert first.split("\n")[-1] == prompt.example[0].split("\n")[-1]
    for line in prompt.example[0].split("\n")[2:-1]:
        assert line in first.split("\n")
    project, parcel = (eval_json(text)[0]["id"] for text in prompt.example[2::2])
    own = [json.loads(json.dumps(key)) for key in ids_of_one(of)]
    for reply, answer in zip(prompt.example[1::2], prompt.example[2::2], strict=False):
        action = reply.partition("\nAction: ")[2].replace(project, own[0])
        text = episode.step(action).observation
        assert text.replace(own[0], project).replace(own[1], parcel) == answer
    last = episode.step(prompt.example[-1].partition("\nAction: ")[2])
    assert last.success


def ids_of_one(of):
    episode, _ = started(of)
    project = eval_json(episode.step("get_projects with Action Input: {}").observation)[0]["id"]
    said = f'get_tasks with Action Input: {{"project_id": "{project}"}}'
    return project, eval_json(episode.step(said).observation)[0]["id"]


def label(goal, subgoals, answer, tool, goal_type=0, config=None):
    return {"id": 0, "goal": goal, "subgoals": subgoals, "difficulty": "easy",
            "additional_info": {"answer": answer, "init_config": config, "tool": tool,
                                "goal_type": goal_type}}  # fmt: skip


@pytest.fixture
def labels(monkeypatch, tmp_path):
    """A small data directory in the files' own formats."""
    openpyxl = pytest.importorskip("openpyxl")
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    folder = tmp_path / "tool"
    folder.mkdir()
    (folder / "todo_projects.json").write_text(json.dumps(PROJECTS[1:]))
    (folder / "todo_projects_agentgym.json").write_text(json.dumps(PROJECTS))
    config = {"current_date": "2015-06-01", "current_location": "Ghent"}
    state = started(own_task(PROJECTS, "?", [2]))[0]._world.state()
    later = json.loads(json.dumps(state))
    later["tasks"][0]["due_date"] = "2015-07-07"
    todo = [
        label("How many tasks are there?", [2], state, "todo", config=config),
        label("Put Post the parcel off to 2015-07-07.", ["done"], later, "todo", config=config),
        label("How many tasks are there?", [2], state, "todo", config=config),
    ]
    (folder / "todo.jsonl").write_text("\n".join(map(json.dumps, todo)))
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Sheet1"
    for row in (["Fruit", "Stock"], ["plum", 4], ["fig", 9]):
        sheet.append(row)
    sheet["B2"].number_format = sheet["B3"].number_format = "0.0"
    sheet["A3"].comment = openpyxl.comments.Comment("ripe", "me")
    book.create_sheet("Sheet2").append(["other"])
    book.create_sheet("Answer1").append(["secret"])
    book.save(folder / "sheet_test.xlsx")
    reference = (
        "Reference Action Path: \n"
        "Action 1: update_range with Action Input: {'start_position': 'B3', 'end_position': 'B3',"
        " 'values_list': '[[2]]'}\n"
        "Action 2: sort_sheet_by_col with Action Input: {'col_num': '2', 'order': 'des'}\n"
    )
    answer = json.dumps([["Fruit", "Stock"], ["plum", "4.0"], ["fig", "2.0"]])
    sheets = [label('Set fig to 2 in "Sheet1" and sort.', reference, answer, "sheet", 1)]
    (folder / "sheet.jsonl").write_text("\n".join(map(json.dumps, sheets)))
    return folder, todo, sheets


def test_agentgym_s_tasks_are_test_tasks(labels):
    assert tuple(FAMILY.kinds()) == ("todo", "sheet", *GENERATED)
    todo = FAMILY.tasks("test", kinds=["todo"], n=9)
    assert [t.task_id for t in todo] == ["tooloperation/todo/agentgym-0"] * 2
    sheet = FAMILY.tasks("test", kinds=["sheet"], n=9)
    assert {t.max_steps for t in (*todo, *sheet)} == {30}
    assert FAMILY.tasks("train", kinds=["todo", "sheet"], n=9) == []
    for each in (*todo, *sheet):
        answers = solved(each)
        assert answers[-1].success
        assert sum(a.reward for a in answers) == pytest.approx(1.0)


def test_sheets_of_the_workbook_can_be_opened_but_no_answers(labels):
    (each,) = FAMILY.tasks("test", kinds=["sheet"], n=9)
    episode, text = started(each)
    assert text.endswith("You are now in Sheet1\n[['Fruit', 'Stock'], ['plum', '4.0'], "
                         "['fig', '9.0']]")  # fmt: skip
    say = "{} with Action Input: {}".format
    assert episode.step(say("get_note", '{"position": "A3"}')).observation == "ripe"
    assert not episode.step(say("open_sheet", '{"name": "Answer1"}')).valid
    assert episode.step(say("open_sheet", '{"name": "Sheet2"}')).valid
    assert episode.step(say("get_all_values", "{}")).observation == "[['other']]"


def test_the_cells_that_agree_are_paid(labels):
    (each,) = FAMILY.tasks("test", kinds=["sheet"], n=9)
    episode, _ = started(each)
    say = 'update_cell with Action Input: {{"position": "B{}", "value": {}}}'.format
    first = episode.step("get_all_values with Action Input: {}")
    assert first.reward == pytest.approx(5 / 6)  # what agrees from the start
    assert episode.step(say(2, 1)).reward == 0.0  # worse now
    assert episode.step(say(3, 2)).reward == 0.0
    assert episode.step(say(2, 4)).reward == pytest.approx(1 / 6)
    assert episode.step("finish with Action Input: {}").success


def test_agentboard_s_list_is_the_paper_split(labels):
    folder, todo, sheets = labels
    own = folder / "agentboard" / "tool-operation"
    own.mkdir(parents=True)
    many = [*({**todo[0], "goal": f"How many? {n}"} for n in range(39)), *sheets]
    (own / "test.jsonl").write_text("\n".join(map(json.dumps, many)))
    paper = FAMILY.tasks("paper", kinds=FAMILY.kinds(), n=99)
    assert FAMILY.counts()["paper"] == len(paper) == 40
    assert {t.split for t in paper} == {"paper"}
    assert FAMILY.tasks("test", kinds=["sheet"], n=9) == []  # it is in the paper's list
    episode, _ = started(paper[0])
    assert episode.step('finish with Action Input: {"answer": 2}').success
    (own / "test.jsonl").write_text(json.dumps(todo[0]))
    with pytest.raises(UserError, match="holds 1 tasks, not 40"):
        FAMILY.tasks("paper", kinds=["todo"], n=1)


def test_the_to_do_list_has_to_be_that_of_the_tasks(labels):
    folder, *_ = labels
    (folder / "todo_projects_agentgym.json").unlink()
    assert tuple(FAMILY.kinds()) == ("sheet", *GENERATED)
    with pytest.raises(UserError, match=r"with the projects Errands, Empty; put that of https"):
        FAMILY.tasks("test", kinds=["todo"], n=1)


def test_broken_files_are_named(labels):
    folder, *_ = labels
    (folder / "todo.jsonl").write_text('{"goal": "x"}\n')
    with pytest.raises(UserError, match=r"todo\.jsonl:1: not a tool task: needs goal"):
        FAMILY.tasks("test", kinds=["todo"], n=1)
    (folder / "sheet_test.xlsx").write_text("no")
    (each,) = FAMILY.tasks("test", kinds=["sheet"], n=1)
    with pytest.raises(UserError, match=r"sheet_test\.xlsx: cannot be read"):
        started(each)


def test_missing_openpyxl_says_what_to_install(labels, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"pip install 'agentrm-jax\[tools\]'"):
        FAMILY.tasks("test", kinds=["sheet"], n=1)


def test_a_worker_needs_no_jax():
    code = (
        "import sys; from agentrm_jax.envs.tools.tooloperation import ToolOperation as T; f = T();"
        "t = f.tasks('train', kinds=f.kinds()[-2:], n=2); [f.create().reset(x) for x in t];"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(
    not Path(REAL, "tool", "sheet.jsonl").is_file(), reason="AGENTRM_DATA has no tool/sheet.jsonl"
)
def test_reference_actions_reach_the_answers_of_the_real_sheets():
    pytest.importorskip("openpyxl")
    tasks = FAMILY.tasks("test", kinds=["sheet"], n=99)
    assert len(tasks) == 20
    for each in tasks:
        answers = solved(each)
        assert answers[-1].success, each.task_id
        assert all(a.valid for a in answers)


@pytest.mark.skipif(
    not Path(REAL, "tool", "todo_projects_agentgym.json").is_file(),
    reason="AGENTRM_DATA has no tool/todo_projects_agentgym.json",
)
def test_the_real_to_do_tasks_can_be_solved():
    tasks = FAMILY.tasks("test", kinds=["todo"], n=999)
    assert len(tasks) == 149
    for each in tasks:
        assert solved(each)[-1].success, each.task_id
