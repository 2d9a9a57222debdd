"""Formulas hold what Excel and Google's sheets give; cells without end, circles, other sheets."""

import re
import time

import pytest

from agentrm_jax.envs.tools.calls import Call
from agentrm_jax.envs.tools.sheet_formula import Book, Formula
from agentrm_jax.envs.tools.sheet_grid import COLUMNS, ROWS, Cell, Grid
from agentrm_jax.envs.tools.sheet_references import (
    after_deletion,
    after_insertion,
    column_letters,
    moved,
)
from agentrm_jax.envs.tools.sheet_values import FormulaError
from agentrm_jax.envs.tools.sheet_world import SheetWorld

_VALUES = [
    ["Fruit", "Price", "Stock", None, True],
    ["plum", 2.5, 4.0, None, 1.0],
    ["fig", -10.0, 3.0, None, 0.0],
    ["Apple", 0.5, 20.0, "7", -3.0],
    ["plum", 2.675, None, "x y", 2.0],
    [None, 1e6, 1 / 3, "PLUM", False],
]


def grid_of(values):
    return Grid(rows=tuple(tuple(Cell(value=value) for value in row) for row in values))


def result(formula, **sheets):
    book = Book({"Sheet1": grid_of(_VALUES), **{n: grid_of(v) for n, v in sheets.items()}})
    return book.result(Formula(formula), "Sheet1")


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        # Only the way that is taken is computed.
        ("IF(1=1,5,1/0)", 5.0), ("IF(1=2,1/0,6)", 6.0), ("IF(D2=0,0,C2/D2)", 0.0),
        ("IF(FALSE,1)", False), ("IF(TRUE,,1)", 0.0), ("IFS(1=2,1/0,TRUE,7)", 7.0),
        ("IFERROR(1/0,3)", 3.0), ("IFERROR(A2+1,B2)", 2.5), ("IFERROR(B2,1/0)", 2.5),
        ("IF(A2=\"PLUM\",1,2)", 1.0),
        # An empty cell is 0, an empty text and FALSE.
        ('D2=""', True), ("D2=0", True), ("D2=FALSE", True), ("D2<>\"\"", False), ("D2=D3", True),
        ("D2>0", False), ('D2<"a"', True), ("D2+1", 1.0), ('D2&"!"', "!"), ("D2", 0.0),
        # Numbers come before texts, texts before truth values; case does not matter.
        ('1<"1"', True), ('"a"<TRUE', True), ('99>"1"', False), ('"Fig"="fIG"', True),
        ('"a"<"B"', True), ("TRUE>FALSE", True), ('1="1"', False),
        # Operators.
        ("-2^2", 4.0), ("2^-2", 0.25), ("2^3^2", 64.0), ("--3", 3.0), ("10%", 0.1), ("-5%", -0.05),
        ("100%%", 0.01), ("1+2*3-4/2", 5.0), ("(1+2)*3", 9.0), ('1+2&"x"&3*2', "3x6"),
        ("7-2-1", 4.0), ("8/4/2", 1.0), ("1=1=TRUE", True), ("1E3+.5", 1000.5), ('"5"+1', 6.0),
        ('"1,000"*2', 2000.0), ('"50%"*2', 1.0), ('"1e3"+0', 1000.0), ("TRUE+1", 2.0),
        ('1/3&""', "0.333333333333333"), ('0.1+0.2&""', "0.3"), ('1E20&""', "1E+20"),
        ("+A2", "plum"), ('+"5"&1', "51"), ("SUM(1;2)", 3.0), ('IF(1=1;"a;b";2)', "a;b"),
        ("0.1+0.2=0.3", True), ("0.1+0.2>0.3", False), ("1+1E-14=1", False),
        ('"say ""hi"""', 'say "hi"'), ("TRUE&1", "TRUE1"), ("0^0", 1.0),
        # Ranges: texts and truth values do not count; nor does the order of their ends.
        ("SUM(B2:B5)", -4.325), ("SUM(B5:B2)", -4.325), ("SUM($B$2:B5)", -4.325),
        ("SUM(A1:E1)", 0.0), ("SUM(A1,B2)", 2.5), ("SUM(D4)", 0.0), ('SUM("7",1)', 8.0),
        ("SUM(TRUE,2)", 3.0), ("SUM(E1)", 0.0), ("SUM(B:B)", 999995.675), ("SUM(B2:B)", 999995.675),
        ("SUM(2:2)", 7.5), ("SUM($2:$3)", 0.5), ("SUM(C:E)", 27 + 1 / 3), ("SUM(Z:Z)", 0.0),
        ("SUM(sheet1!B2:B3)", -7.5), ("Sheet1!C2", 4.0), ("'Sheet1'!C2+1", 5.0),
        ("MAX(B2:B5)", 2.675), ("MIN(A:A)", 0.0), ("MAX(-5,A1)", -5.0), ("COUNT(A1:E6)", 13.0),
        ("COUNT(1,\"a\",\"2\",TRUE)", 3.0), ("COUNTA(A1:E2)", 8.0), ("COUNTBLANK(D1:D6)", 3.0),
        ("AVERAGE(B2:B4,1)", -1.5), ("PRODUCT(B2:C3)", -300.0), ("MEDIAN(B2:B5)", 1.5),
        ("LARGE(B2:B5,1)", 2.675), ("SMALL(B2:B5,2)", 0.5), ("SUMPRODUCT(B2:B4,C2:C4)", -10.0),
        # Conditions.
        ('COUNTIF(A1:A6,"plum")', 2.0), ('COUNTIF(A1:D6,"PLUM")', 3.0),
        ('COUNTIF(B1:B6,">1")', 3.0),
        ('COUNTIF(A2:A6,"<>plum")', 3.0), ('COUNTIF(A1:A6,"*l*")', 3.0),
        ('COUNTIF(A1:A6,"f?g")', 1.0),
        ('COUNTIF(A1:A6,"")', 1.0), ("COUNTIF(C1:C6,4)", 1.0), ('COUNTIF(C1:C6,"=4")', 1.0),
        ('COUNTIF(A1:A6,"~*")', 0.0), ('SUMIF(A2:A6,"plum",B2:B6)', 5.175),
        ('SUMIF(C2:C4,">3")', 24.0), ('SUMIF(A2:A6,"plum",B2)', 5.175),
        ('SUMIF(A2:A3,"plum",B2:B6)', 2.5), ('AVERAGEIF(A2:A6,"plum",$B$2:B3)', 2.5875),
        ('SUMIF(A:A,"plum",B:B)', 5.175), ('SUMIF(A2:A6,"plum",Z9)', 0.0),
        ("COUNT(1/0,2,#N/A)", 1.0), ("COUNTA(1/0,D2,A2)", 2.0),
        ('AVERAGEIF(A2:A6,"plum",B2:B6)', 2.5875), ("AND(1,TRUE,B2>0)", True), ("AND(1,0)", False),
        ("OR(FALSE,0)", False), ("OR(FALSE,B2)", True), ("NOT(0)", True), ("AND(A1:E1)", True),
        # Rounding: half away from zero, of what is shown.
        ("ROUND(2.5,0)", 3.0), ("ROUND(-2.5,0)", -3.0), ("ROUND(2.675,2)", 2.68),
        ("ROUND(1.005,2)", 1.01), ("ROUND(1234,-2)", 1200.0), ("ROUND(0.5)", 1.0),
        ("ROUNDUP(2.01,1)", 2.1), ("ROUNDDOWN(-2.09,1)", -2.0), ("INT(-1.5)", -2.0),
        ("MOD(-7,3)", 2.0), ("MOD(7,-3)", -2.0), ("ABS(-3)", 3.0), ("SQRT(9)", 3.0),
        ("POWER(2,3)", 8.0),
        ("ADD(1,2)", 3.0), ("MINUS(5,2)", 3.0), ("MULTIPLY(2,3)", 6.0), ("DIVIDE(6,3)", 2.0),
        # Texts and looking up.
        ('LEN("abc")', 3.0), ('LEFT("abc",2)', "ab"), ('RIGHT("abc")', "c"),
        ('MID("abcd",2,2)', "bc"),
        ('UPPER("a")&LOWER("B")', "Ab"), ('TRIM("  a  b ")', "a b"),
        ('CONCATENATE("a",1,D2)', "a1"),
        ('VLOOKUP("fig",A2:C6,3,FALSE)', 3.0), ('MATCH("fig",A1:A6,0)', 3.0),
        ('VLOOKUP("f*",A2:C6,3,FALSE)', 3.0), ('VLOOKUP("?PPLE",A2:B6,2,0)', 0.5),
        ('MATCH("p*m",A1:A6,0)', 2.0), ("MATCH(TRUE,E1:E6,0)", 1.0),
        ("INDEX(A1:C6,2,1)", "plum"), ("INDEX(A2:C2,3)", 4.0), ("INDEX(A2:A6,2)", "fig"),
        ("ISBLANK(D2)", True), ("ISBLANK(A2)", False), ("ISNUMBER(B2)", True), ("ISTEXT(A2)", True),
        ("ISERROR(1/0)", True), ('VALUE("12.5")', 12.5), ("TRUE()", True),
    ],
)  # fmt: skip
def test_values(formula, value):
    found = result(formula)
    assert type(found) is type(value)
    assert found == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("formula", "error"),
    [
        ("1/0", "#DIV/0!"), ("0/0", "#DIV/0!"), ("AVERAGE(A1:A6)", "#DIV/0!"),
        ("MOD(1,0)", "#DIV/0!"),
        ("SUM(1,1/0)", "#DIV/0!"), ("IF(1/0,1,2)", "#DIV/0!"), ("AND(FALSE,1/0)", "#DIV/0!"),
        ("0^-1", "#DIV/0!"), ("A2+1", "#VALUE!"), ('"x"*2', "#VALUE!"), ('"nan"+1', "#VALUE!"),
        ('"inf"+1', "#VALUE!"), ('"1_0"+1', "#VALUE!"), ("IF(A2,1,2)", "#VALUE!"),
        ("NOT(A2)", "#VALUE!"),
        ("AND(A2:A3)", "#VALUE!"), ("B2:B4+1", "#VALUE!"), ("B2:B4", "#VALUE!"),
        ('SUM("a")', "#VALUE!"),
        ("(-8)^0.5", "#NUM!"), ("SQRT(-1)", "#NUM!"), ("1E308*10", "#NUM!"), ("9^9^9^9", "#NUM!"),
        ("1E999", "#NUM!"), ("SUM(1E308,1E308)", "#NUM!"), ("NOSUCH(1)", "#NAME?"),
        ("abc", "#NAME?"),
        ("Other!A1", "#REF!"), ("#REF!+1", "#REF!"), ("SUM(#N/A)", "#N/A"), ("MINUS(1)", "#N/A"),
        ("IF()", "#N/A"), ("IF(1)", "#N/A"), ("ABS()", "#N/A"),
        ('VLOOKUP("x",A:B,2,FALSE)', "#N/A"), ('VLOOKUP("~*",A:B,2,FALSE)', "#N/A"),
        ("INDEX(A1:B2,3,1)", "#REF!"), ("1+", "#ERROR!"), ("", "#ERROR!"), ("(1", "#ERROR!"),
        ("1 2", "#ERROR!"), ("(" * 400, "#ERROR!"), ("A1:", "#ERROR!"), ("SUM(1,", "#ERROR!"),
        ('"a', "#ERROR!"), ("1" + "+1" * 10_000, "#ERROR!"), ("A1:B2:C3", "#ERROR!"),
    ],
)  # fmt: skip
def test_errors(formula, error):
    with pytest.raises(FormulaError, match=re.escape(error)):
        result(formula)


def test_texts_do_not_grow_without_end():
    grid = grid_of([["x" * 20_000, *[None] * 40]])
    grid = grid.put({(1, n): Cell(value=Formula("{0}1&{0}1".format(column_letters(n - 1))))
                     for n in range(2, 41)})  # fmt: skip
    assert grid.text(1, 2) == "x" * 40_000
    assert grid.text(1, 3) == grid.text(1, 40) == "#VALUE!"
    assert result('CONCATENATE("a","b")') == "ab"


def test_a_condition_with_wildcards_takes_no_time_worth_mentioning():
    grid = grid_of([["a" * 20_000 + "b"]] * 30)
    book = Book({"Sheet1": grid})
    begin = time.perf_counter()
    assert book.result(Formula('COUNTIF(A:A,"*a*a*a*a*a*c")'), "Sheet1") == 0.0
    assert book.result(Formula('COUNTIF(A:A,"*a*b")'), "Sheet1") == 30.0
    assert time.perf_counter() - begin < 5.0
    with pytest.raises(FormulaError, match="#VALUE!"):
        book.result(Formula('COUNTIF(A:A,"' + "a*" * 300 + '")'), "Sheet1")


def test_other_sheets_are_read():
    prices = [["fig", 3.0], ["plum", 4.0]]
    assert result("SUM(Prices!B:B)*B2", Prices=prices) == 17.5
    assert result("'My list'!B1", **{"My list": prices}) == 3.0
    assert result("VLOOKUP(A2,prices!$A$1:$B$2,2,FALSE)", Prices=prices) == 4.0


def call(world, tool, **given):
    answer, after = world.call(Call(tool, given))
    assert answer.valid, answer.value
    return answer.value, after


def test_a_sheet_sees_what_was_changed_in_another_before():
    world = SheetWorld({"One": grid_of([[1.0, 2.0]]), "Two": grid_of([[None, None]])}, "Two")
    _, world = call(world, "update_cell", position="A1", value="=One!A1*10")
    _, world = call(world, "open_sheet", name="One")
    _, world = call(world, "update_cell", position="A1", value=5)
    _, world = call(world, "update_cell", position="B1", value="=Two!A1+1")
    assert world.values() == [["5", "51"]]
    _, world = call(world, "open_sheet", name="Two")
    assert world.values() == [["50"]]


def test_a_circle_is_an_error_for_all_in_it_whatever_is_asked_first():
    cells = {(1, 1): "B1+1", (1, 2): "IFERROR(C1,0)", (1, 3): "A1", (1, 4): "IFERROR(A1,7)"}
    for order in ([1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3]):
        grid = grid_of([[None] * 4]).put({p: Cell(value=Formula(t)) for p, t in cells.items()})
        texts = {column: grid.text(1, column) for column in order}
        assert [texts[c] for c in (1, 2, 3, 4)] == ["#REF!", "#REF!", "#REF!", "7"]


def test_a_way_that_is_not_taken_is_no_circle():
    grid = grid_of([[1.0, None]]).put({(1, 2): Cell(value=Formula("IF(A1=1,5,B1)"))})
    assert grid.text(1, 2) == "5"
    assert grid_of([[None]]).put({(1, 1): Cell(value=Formula("SUM(A:A)"))}).text(1, 1) == "#REF!"


@pytest.mark.parametrize("step", ["A{0}+1", "SUM(A{0},1)", "IF(A{0}>=0,A{0}+1,0)"])
def test_chains_have_no_end(step):
    rows = 900
    grid = grid_of([[1.0]] + [[None]] * (rows - 1))
    grid = grid.put({(n, 1): Cell(value=Formula(step.format(n - 1))) for n in range(2, rows + 1)})
    assert grid.text(rows, 1) == str(rows)
    assert grid.text(450, 1) == "450"


def test_running_sums_take_no_time_worth_mentioning():
    grid = grid_of([[1.0, None]] * 400)
    grid = grid.put({(n, 2): Cell(value=Formula(f"SUM(A$1:A{n})")) for n in range(1, 401)})
    grid = grid.put({(1, 1): Cell(value=Formula("SUM(B2:B400)*0+1"))})
    begin = time.perf_counter()
    assert grid.text(400, 2) == "#REF!"  # A1 needs them all
    straight = grid.put({(1, 1): Cell(value=2.0)})
    assert straight.text(400, 2) == "401"
    assert time.perf_counter() - begin < 5.0


def test_a_formula_that_reads_too_much_is_an_error_at_once():
    grid = grid_of([[1.0] * 100] * 100)
    book = Book({"Sheet1": grid})
    assert book.result(Formula("SUM(A:CV)"), "Sheet1") == 10_000.0
    begin = time.perf_counter()
    with pytest.raises(FormulaError, match="#ERROR!"):
        book.result(Formula("SUM(" + ",".join(["A:CV"] * 1000) + ")"), "Sheet1")
    assert time.perf_counter() - begin < 2.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SUM(C:C)", "SUM(D:D)"), ("SUM($A:C)", "SUM($A:D)"), ("Sheet1!C2", "Sheet1!D2"),
        ("Other!C2", "Other!C2"), ("'my list'!C2+C2", "'my list'!C2+D2"), ("SUM(2:3)", "SUM(2:3)"),
        ('"C2"&C2', '"C2"&D2'), ("C2:C", "D2:D"), ("A1", "A1"), ("LOG10(C1)", "LOG10(D1)"),
    ],
)  # fmt: skip
def test_references_after_an_inserted_column(before, after):
    assert after_insertion(before, COLUMNS, 2, 1, "Sheet1") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SUM(2:3)", "SUM(2:2)"), ("SUM(A9:A3)", "SUM(A8:A3)"), ("A3", "#REF!"), ("3:3", "#REF!"),
        ("SUM(A3:A9)", "SUM(A3:A8)"), ("SUM(A1:A3)", "SUM(A1:A2)"), ("SUM(A:A)", "SUM(A:A)"),
        ("Other!A3", "Other!A3"), ("A2:A", "A2:A"), ("A4:A", "A3:A"), ("SUM(A3:A1)", "SUM(A2:A1)"),
    ],
)  # fmt: skip
def test_references_after_a_deleted_row(before, after):
    assert after_deletion(before, ROWS, 3, "Sheet1") == after


def test_references_of_a_row_that_is_sorted_elsewhere():
    assert moved("SUM(B:B)+A2+A$2+Other!A2", 3) == "SUM(B:B)+A5+A$2+Other!A5"
    assert moved("SUM(2:2)", -2) == "SUM(#REF!)"
