"""The sheet tools of AgentBoard: names, arguments and descriptions."""

from __future__ import annotations

from agentrm_jax.envs.tools.calls import Tool

OPERATORS = ("SUM", "AVERAGE", "COUNT", "MAX", "MIN", "MINUS", "PRODUCT")
AREA = ("start_position", "end_position")
_FORMULA = "operator is one of SUM, AVERAGE, COUNT, MAX, MIN, MINUS, PRODUCT"
_CELLS = "the cells are given by start_position and end_position, or as a position_list"
TOOLS = (
    Tool("open_sheet", ("name",), "opens another sheet."),
    Tool("del_sheet", ("name",), "deletes a sheet."),
    Tool("freeze_data", ("dimension", "num"), 'freezes the first num "rows" or "columns".'),
    Tool("get_A1_annotation", ("row", "col"), "the position, like B3, of row and column number."),
    Tool("insert_cols", ("values_list", "col_idx"), "new columns, a list of lists, from col_idx."),
    Tool("insert_rows", ("values_list", "row_idx"), "new rows, a list of lists, from row_idx."),
    Tool("delete_batch_data", ("dimension", "index_list"), 'deletes each "row" or "col" named.'),
    Tool("update_cell", ("position", "value"), "writes one cell."),
    Tool(
        "update_cell_by_formula",
        (*AREA, "position_list", "result_position", "operator"),
        f"writes a formula on cells; {_FORMULA}; {_CELLS}.",
    ),
    Tool("update_range", (*AREA, "values_list"), "writes an area from a list of lists."),
    Tool(
        "sort_sheet_by_col",
        ("col_num", "order"),
        'sorts all rows that are not frozen; order is "asc" or "des".',
    ),
    Tool("merge_cells", AREA, "makes an area one cell."),
    Tool("update_note", ("position", "content"), "writes a cell's note."),
    Tool("get_all_values", (), "the whole open sheet."),
    Tool("get_range_values", AREA, "the cells of an area."),
    Tool("get_cell_value", ("position",), "one cell."),
    Tool(
        "get_value_by_formula",
        (*AREA, "position_list", "operator"),
        f"computes without writing; {_FORMULA}; {_CELLS}.",
    ),
    Tool(
        "filter_cells",
        ("query", "in_row", "in_column"),
        'the positions of cells that are exactly the query, or match re.compile("..."); in_row '
        "and in_column may be left out.",
    ),
    Tool("get_note", ("position",), "a cell's note."),
    Tool("finish", (), "ends, with the sheet as it is."),
)
