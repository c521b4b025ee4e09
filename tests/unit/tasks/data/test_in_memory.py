"""Rows that a program hands over: the same rows in any form are the same task, and what is no rows is refused."""

import pytest

from heliostat.tasks.data.in_memory import Registry

ROWS = [{"prompt": f"{number} + 1 =", "answer": str(number + 1)} for number in range(3)]


class PolarsFrame:
    """What a polars frame offers: its ``to_dict`` takes no orientation."""

    columns = ("prompt", "answer")

    def to_dict(self, *, as_series=True):
        raise AssertionError("columns, not rows")

    def to_dicts(self):
        return [dict(row) for row in ROWS]


def pandas_frame():
    return pytest.importorskip("pandas").DataFrame(ROWS)


def arrow_table():
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


def hub_dataset():
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


@pytest.mark.parametrize(
    "make", [lambda: tuple(ROWS), lambda: iter(ROWS), PolarsFrame, pandas_frame, arrow_table, hub_dataset]
)
def test_the_same_rows_in_any_form_have_one_name(make):
    given = Registry()
    assert given.rows(make()) == Registry().rows(ROWS)
    assert next(iter(given.tables.values())) == ROWS


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        ("rows.jsonl", TypeError, "a file goes into the recipe"),
        ({"prompt": ["1"], "answer": ["2"]}, TypeError, "must be rows"),
        (7, TypeError, "must be rows"),
        ([ROWS[0], "text"], TypeError, "row 2: expected a dict"),
        ([], ValueError, "no rows"),
    ],
)
def test_what_is_no_rows_is_refused(data, error, reason):
    with pytest.raises(error, match=reason):
        Registry().rows(data)
