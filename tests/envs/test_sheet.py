"""Sheets: numbers as they are shown, formulas, grids and AgentBoard's tools on them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.envs.tools.calls import Call, ToolError
from agentrm_jax.envs.tools.patterns import Pattern
from agentrm_jax.envs.tools.sheet_formula import Book
from agentrm_jax.envs.tools.sheet_goals import grid_of
from agentrm_jax.envs.tools.sheet_grid import COLUMNS, ROWS, Box, Cell, Formula, Grid
from agentrm_jax.envs.tools.sheet_numbers import shown, typed
from agentrm_jax.envs.tools.sheet_references import (
    after_deletion,
    after_insertion,
    column_letters,
    column_number,
    moved,
)
from agentrm_jax.envs.tools.sheet_values import FormulaError
from agentrm_jax.envs.tools.sheet_world import SheetWorld

VALUES = [
    ["Fruit", "Price", "Stock", "Value"],
    ["plum", 2.5, 4.0, None],
    ["fig", 10.0, 3.0, None],
    ["Apple", 0.5, 20.0, None],
]
FORMATS = ["General", "0.00", "0", "General"]


def evaluate(formula, grid):
    return Book({"Sheet1": grid}).result(Formula(formula), "Sheet1")


def world():
    return SheetWorld({"Sheet1": grid_of(VALUES, FORMATS)}, "Sheet1")


def played(of, *calls):
    """The last answer's value and the world after the calls, which all have to be valid."""
    for name, arguments in calls:
        result, of = of.call(Call(name, arguments))
        assert result.valid, result.value
    return result.value, of


def refused(name, arguments, of=None):
    before = of or world()
    result, after = before.call(Call(name, arguments))
    assert not result.valid
    assert after is before
    return str(result.value)


def names(rows):
    return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("value", "number_format", "text"),
    [
        (68.0, "#,##0.00", "68.00"),
        (1234.5, "#,##0.00", "1,234.50"),
        (0.125, "0.00", "0.13"),
        (-0.001, "0.0", "0.0"),
        (2.5, "0", "3"),
        (8.0, "General", "8"),
        (1 / 3, "General", "0.3333333333"),
        (184.8, "General", "184.8"),
        (0.2, "0%", "20%"),
        (True, "General", "TRUE"),
        ("x", "0.00", "x"),
        (None, "0.00", ""),
        (1e300, "0.00", "1E+300"),
    ],
)
def test_numbers_are_shown_in_their_format(value, number_format, text):
    assert shown(value, number_format) == text


@pytest.mark.parametrize(
    ("text", "value", "number_format"),
    [
        ("45", 45.0, None),
        ("-1,200", -1200.0, "#,##0"),
        ("5%", 0.05, "0%"),
        ("true", True, None),
        ("Chapter 3", "Chapter 3", None),
        ("-", "-", None),
        ("1,2", "1,2", None),
    ],
)
def test_typed_texts(text, value, number_format):
    assert typed(text) == (value, number_format)


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("SUM(B2:B4)", 13.0),
        ("SUM(B2,C2)", 6.5),
        ("AVERAGE(A2:B4)", 13 / 3),
        ("COUNT(A1:C4)", 6.0),
        ("MAX(B1:B4)", 10.0),
        ("MIN(A1:A4)", 0.0),
        ("MINUS(B3,C3)", 7.0),
        ("PRODUCT(B2:C2)", 10.0),
        ("2+3*4^2/8-1", 7.0),
        ("-B2^2", 6.25),
        ("(B2+C2)*10%", 0.65),
        ('IF(B3>C3,"yes","no")', "yes"),
        ('A2&"-"&C2', "plum-4"),
        ("ROUND(B2*C3/7,2)", 1.07),
        ("Z99", 0.0),
        ('"A1"="a1"', True),
    ],
)
def test_formulas(formula, value):
    assert evaluate(formula, grid_of(VALUES, FORMATS)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("formula", "error"),
    [
        ("MINUS(B2:C2)", "#N/A"),
        ("1/0", "#DIV/0!"),
        ("AVERAGE(A2:A4)", "#DIV/0!"),
        ("NOSUCH(1)", "#NAME?"),
        ("1+", "#ERROR!"),
        ("A2+1", "#VALUE!"),
        ("B2:B4+1", "#VALUE!"),
        ("(" * 400, "#ERROR!"),
        ("9^9^9^9", "#NUM!"),
    ],
)
def test_formulas_with_errors(formula, error):
    with pytest.raises(FormulaError, match=re.escape(error)):
        evaluate(formula, grid_of(VALUES, FORMATS))


@given(st.text(alphabet='AB12(),:+-*/^&=<>"$%.SUM# ', max_size=30))
def test_any_formula_has_a_text(formula):
    grid = grid_of(VALUES, FORMATS).put({(1, 1): Cell(value=Formula(formula))})
    assert isinstance(grid.text(1, 1), str)


def test_a_formula_that_needs_itself_is_an_error():
    grid = grid_of(VALUES, FORMATS).put({(2, 4): Cell(value=Formula("D3")),
                                         (3, 4): Cell(value=Formula("D2+1"))})  # fmt: skip
    assert grid.text(2, 4) == grid.text(3, 4) == "#REF!"
    whole = grid.put({(2, 4): Cell(value=Formula("SUM(A1:D9)")), (3, 4): Cell(value=Formula("D2"))})
    assert whole.text(3, 4) == "#REF!"


def test_running_sums_are_computed_once_each():
    rows = [[1.0, None] for _ in range(60)]
    grid = grid_of(rows, ["0", "0"])
    grid = grid.put({(n, 2): Cell(value=Formula(f"SUM(A1:B{n - 1})")) for n in range(2, 61)})
    assert [grid.text(n, 2) for n in (2, 3, 4, 5)] == ["1", "3", "7", "15"]
    assert grid.all_texts[40][1] == str(2**40 - 1)


def test_references_follow_their_cells():
    assert moved("SUM(B2:$C$2)+A1", 3) == "SUM(B5:$C$2)+A4"
    assert moved("A1", -3) == "#REF!"
    assert after_insertion('SUM(B2:B9)&"B9"', ROWS, 3, 2) == 'SUM(B2:B11)&"B9"'
    assert after_insertion("A1+C1", COLUMNS, 2, 1) == "A1+D1"
    assert after_deletion("SUM(B2:B9)+B5", ROWS, 5) == "SUM(B2:B8)+#REF!"
    assert after_deletion("SUM(B2:B9)", ROWS, 9) == "SUM(B2:B8)"
    assert after_deletion("SUM(B2:B2)", ROWS, 2) == "SUM(#REF!)"
    assert [column_letters(n) for n in (1, 26, 27, 703)] == ["A", "Z", "AA", "AAA"]
    assert column_number("AAA") == 703


def test_sums_take_over_a_format_and_products_do_not():
    _, after = played(
        world(),
        ("update_cell_by_formula", {"start_position": "B2", "end_position": "C2",
                                    "result_position": "D2", "operator": "SUM"}),
        ("update_cell_by_formula", {"start_position": "B3", "end_position": "C3",
                                    "result_position": "D3", "operator": "PRODUCT"}),
    )  # fmt: skip
    assert [row[3] for row in after.values()] == ["Value", "6.50", "30", ""]


def test_sorting_moves_titles_unless_they_are_frozen():
    rows, _ = played(world(), ("sort_sheet_by_col", {"col_num": 2, "order": "des"}))
    assert names(rows) == ["Fruit", "fig", "plum", "Apple"]  # texts come before numbers
    rows, _ = played(world(), ("sort_sheet_by_col", {"col_num": "2", "order": "asc"}))
    assert names(rows) == ["Apple", "plum", "fig", "Fruit"]
    rows, _ = played(
        world(),
        ("freeze_data", {"dimension": "rows", "num": 1}),
        ("sort_sheet_by_col", {"col_num": 1, "order": "asc"}),
    )
    assert names(rows) == ["Fruit", "Apple", "fig", "plum"]  # whatever their case


def test_formulas_and_notes_move_with_their_rows():
    value, _ = played(
        world(),
        ("update_note", {"position": "A2", "content": "sweet"}),
        *(("update_cell", {"position": f"D{n}", "value": f"=B{n}*C{n}"}) for n in (2, 3, 4)),
        ("delete_batch_data", {"dimension": "row", "index_list": [3]}),
        ("sort_sheet_by_col", {"col_num": 2, "order": "asc"}),
        ("update_cell", {"position": "B2", "value": 3}),
        ("get_note", {"position": "A2"}),
    )
    assert value == "sweet"
    rows, _ = played(
        world(),
        *(("update_cell", {"position": f"D{n}", "value": f"=B{n}*C{n}"}) for n in (2, 3, 4)),
        ("delete_batch_data", {"dimension": "row", "index_list": [3]}),
        ("sort_sheet_by_col", {"col_num": 2, "order": "asc"}),
        ("update_cell", {"position": "B2", "value": 3}),
    )
    assert [row[3] for row in rows] == ["10", "12", "Value"]


def test_rows_and_columns_are_put_in_and_taken_out():
    rows, after = played(
        world(), ("insert_rows", {"values_list": [["kiwi", "1.5", 7]], "row_idx": 5})
    )
    assert rows[-1] == ["kiwi", "1.50", "7", ""]  # in the format of the row above
    rows, _ = played(
        after, ("insert_cols", {"values_list": [["Code", 1, 2]], "col_idx": 2}),
        ("delete_batch_data", {"dimension": "col", "index_list": [4, 5]}),
    )  # fmt: skip
    assert rows[0] == ["Fruit", "Code", "Price"]
    assert [row[1] for row in rows] == ["Code", "1.00", "2.00", "", ""]


def test_a_merged_area_shows_its_first_cell():
    rows, after = played(world(), ("merge_cells", {"start_position": "A2", "end_position": "A3"}))
    assert names(rows) == ["Fruit", "plum", "plum", "Apple"]
    assert played(after, ("get_cell_value", {"position": "A3"}))[0] is None
    assert "vertical merges" in refused("sort_sheet_by_col", {"col_num": 2, "order": "asc"}, after)
    rows, _ = played(after, ("delete_batch_data", {"dimension": "row", "index_list": [2]}))
    assert names(rows) == ["Fruit", "", "Apple"]
    rows, _ = played(
        after,
        ("insert_rows", {"values_list": [["new"]], "row_idx": 2}),
        ("get_range_values", {"start_position": "A2", "end_position": "B4"}),
    )
    assert rows == [["new", ""], ["plum", "2.50"], ["plum", "10.00"]]


def test_what_the_tools_find():
    positions, _ = played(world(), ("filter_cells", {"query": "4"}))
    assert positions == ["C2"]
    positions, _ = played(world(), ("filter_cells", {"query": Pattern("^[a-z]"), "in_column": 1}))
    assert positions == ["A2", "A3"]
    assert played(world(), ("get_A1_annotation", {"row": "3", "col": 2}))[0] == "B3"
    product = {"position_list": ["B2", "C2"], "operator": "PRODUCT"}
    assert played(world(), ("get_value_by_formula", product))[0] == "10"
    assert played(world(), ("get_cell_value", {"position": "b2"}))[0] == "2.50"
    assert played(world(), ("get_note", {"position": "A1"}))[0] == ""


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("open_sheet", {"name": "Answer1"}, "WorksheetNotFound('Answer1')"),
        ("del_sheet", {"name": "Sheet1"}, "AttributeError(\"'str' object has no attribute 'id'\")"),
        ("freeze_data", {"dimension": "row", "num": 1}, "should be one of the rows/columns"),
        ("freeze_data", {"dimension": "rows", "num": "x"}, "ValueError("),
        ("get_note", {"position": "x"}, "Unable to parse range: 'Sheet1'!x"),
        ("get_cell_value", {"position": "A0"}, "IncorrectCellLabel('A0')"),
        ("get_range_values", {"start_position": "A6", "end_position": "B7"}, "IndexError("),
        ("get_A1_annotation", {"row": 0, "col": 1}, "IncorrectCellLabel('(0, 1)')"),
        ("update_cell", {"position": "A99", "value": 1}, "exceeds grid limits. Max rows: 8"),
        ("update_cell", {"position": "A1", "value": [1]}, "TypeError("),
        ("update_cell", {"position": "A1", "value": "nan"}, "not JSON compliant"),
        ("delete_batch_data", {"dimension": "row", "index_list": [1, 2, 3]}, "delete whole sheet"),
        ("delete_batch_data", {"dimension": "row", "index_list": [40]}, "only 8 rows"),
        ("delete_batch_data", {"dimension": "x", "index_list": [1]}, "Wrong dimension"),
        ("sort_sheet_by_col", {"col_num": 1, "order": "up"}, "ValueError("),
        ("update_range", {"start_position": "A1", "end_position": "C4", "values_list": [[1]]},
         "tried"),
        ("update_range", {"start_position": "A2", "end_position": "A2", "values_list": [[1], [2]]},
         "tried writing to row [3]"),
        ("insert_rows", {"values_list": [1], "row_idx": 2}, "TypeError("),
        ("filter_cells", {"query": 4}, "AttributeError("),
        ("filter_cells", {"query": "4", "in_column": 9}, "IndexError("),
        ("update_note", {"position": "A1", "content": 4}, "TypeError("),
        ("get_value_by_formula", {"position_list": ["AA1"], "operator": "SUM"}, "A1 notation"),
        ("get_value_by_formula", {"position_list": ["A1"], "operator": "MEDIAN"}, "one of the ["),
    ],
)  # fmt: skip
def test_refusals_change_nothing(name, arguments, answer):
    if answer == "tried":
        # The last column of the table is empty but for its title, so this is not the whole sheet.
        assert played(world(), (name, arguments))[0][0][0] == "1"
    else:
        assert answer in refused(name, arguments)


def test_a_missing_argument_is_python_s_error():
    with pytest.raises(KeyError, match="position"):
        world().call(Call("get_note", {}))
    with pytest.raises(ToolError, match="Please choose another valid action"):
        world().call(Call("check_valid_actions", {}))


CELLS = st.sampled_from(["A1", "B2", "C3", "D4", "A5", "Z9", "x"])
LINES = st.lists(st.lists(st.sampled_from([1, "2", "x", None]), max_size=3), max_size=2)
CALLS = st.one_of(
    st.tuples(st.just("update_cell"), st.fixed_dictionaries(
        {"position": CELLS, "value": st.sampled_from([1, "=SUM(B2:C3)", "=B3+A1", "t", ""])})),
    st.tuples(st.just("sort_sheet_by_col"), st.fixed_dictionaries(
        {"col_num": st.integers(0, 5), "order": st.sampled_from(["asc", "des"])})),
    st.tuples(st.sampled_from(["insert_rows"]), st.fixed_dictionaries(
        {"values_list": LINES, "row_idx": st.integers(-1, 9)})),
    st.tuples(st.sampled_from(["insert_cols"]), st.fixed_dictionaries(
        {"values_list": LINES, "col_idx": st.integers(-1, 9)})),
    st.tuples(st.just("delete_batch_data"), st.fixed_dictionaries(
        {"dimension": st.sampled_from(["row", "col"]),
         "index_list": st.lists(st.integers(-1, 9), max_size=3)})),
    st.tuples(st.just("merge_cells"), st.fixed_dictionaries(
        {"start_position": CELLS, "end_position": CELLS})),
    st.tuples(st.just("update_range"), st.fixed_dictionaries(
        {"start_position": CELLS, "end_position": CELLS, "values_list": LINES})),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(CALLS, max_size=8))
def test_whatever_is_done_a_sheet_stays_one(calls):
    of, before = world(), world()
    for name, arguments in calls:
        result, of = of.call(Call(name, arguments))
        grid = of.grid
        assert len({len(row) for row in grid.rows}) == 1
        rows = of.values()
        assert len({len(row) for row in rows}) == 1
        assert all(isinstance(text, str) for row in rows for text in row)
        for box in grid.merges:
            assert 1 <= box.top <= box.bottom
            assert 1 <= box.left <= box.right
            assert (box.top, box.left) != (box.bottom, box.right)
        assert isinstance(str(result.value), str)
    assert world() == before


def test_boxes():
    assert Box(1, 1, 2, 2).meets(Box(2, 2, 3, 3))
    assert not Box(1, 1, 2, 2).meets(Box(3, 1, 3, 3))
    assert Grid(rows=((Cell(),),)).all_texts == [[]]
