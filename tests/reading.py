"""Workbooks read back by the words in them, never by a place; and rows and reports to write.

A header is found by itself: it is the last row of those that stay in view. The Summary has no
header, its lines are found by the word that they begin with.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Union

import jsonschema  # type: ignore[import-untyped]
import xlrd

import security_check
from security_check import (
    AwsError,
    Check,
    CheckResult,
    ControlFinding,
    Message,
    Question,
    Report,
    Row,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc)
NUMBER = "123456789012"
DEPLOY = Path(__file__).parent / "deploy"  # what users deploy
CHECKS_BY_NAME: dict[str, Check] = {check.name: check for check in security_check.CHECKS}

# An open workbook, its file by name, or what is in the file.
Source = Union[xlrd.Book, "os.PathLike[str]", str, bytes]


# --- what a workbook says --------------------------------------------------------------------


def open_book(source: Source) -> Any:
    """The workbook, with its looks and links."""
    if isinstance(source, xlrd.Book):
        return source
    if isinstance(source, bytes):
        return xlrd.open_workbook(file_contents=source, formatting_info=True)
    return xlrd.open_workbook(os.fspath(source), formatting_info=True)


def sheet_names(source: Source) -> list[str]:
    names: list[str] = open_book(source).sheet_names()
    return names


def read_sheet(source: Source, title: str) -> list[dict[str, Any]]:
    """The rows of a sheet by column; a day is text like 2026-11-23."""
    table = _table(open_book(source), title)
    return [{name: cell.value for name, cell in row.items()} for row in table.rows()]


def read_header(source: Source, title: str) -> list[str]:
    return _table(open_book(source), title).header


def read_column(source: Source, title: str, name: str) -> list[Any]:
    return [row[name] for row in read_sheet(source, title)]


def above_header(source: Source, title: str) -> list[str]:
    """The texts over the header: the title, where else to go, what the sheet is about."""
    return [str(cell.value) for cell in _table(open_book(source), title).above() if cell.value]


def summary_rows(source: Source, first: str | None = None) -> list[list[Any]]:
    """The lines of the Summary that begin so, else all, without the blank cells at their ends."""
    rows = [[cell.value for cell in row] for row in _lines(open_book(source), "Summary")]
    for row in rows:
        while row and row[-1] == "":
            row.pop()
    return [row for row in rows if first is None or row[:1] == [first]]


def summary_table(source: Source, first: str) -> list[dict[str, Any]]:
    """The lines under the one of the Summary that begins so, by its words, to a blank one."""
    rows = iter(summary_rows(source))
    header = next(row for row in rows if row[:1] == [first])
    table = []
    for row in rows:
        if not row:
            break
        blank = [""] * (len(header) - len(row))
        table.append(dict(zip(header, [*row, *blank], strict=True)))
    return table


def summary_section(source: Source, title: str) -> list[tuple[str, str]]:
    """The lines of a section of the Summary: a word, and the text beside it."""
    rows = iter(summary_rows(source))
    next(row for row in rows if row and str(row[0]).partition(":")[0] == title)
    section = []
    for row in rows:
        if not row:
            break
        word, *beside = [*row, ""]
        texts = (str(value) for value in beside if value not in ("", "show"))  # "show" is a link
        section.append((str(word), " ".join(texts)))
    return section


def summary_facts(source: Source) -> dict[str, str]:
    """The text beside each word of the Summary."""
    return {str(word): str(text) for word, text, *_ in (r for r in summary_rows(source) if r[1:])}


def all_texts(source: Source) -> dict[str, list[list[str]]]:
    """All that a workbook shows, row by row, by sheet."""
    book = open_book(source)
    return {
        title: [[str(cell.value) for cell in row] for row in _lines(book, title)]
        for title in book.sheet_names()
    }


def timeless(source: Source, *also: str) -> dict[str, list[list[str]]]:
    """The same but for when the audits were, how long they took, what the workbooks of accounts
    are called, and what is like `also`."""
    told = (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", r"\b\d+ s$", r"\S*\d{12}\S*\.xls", *also)
    pattern = re.compile("|".join(told))
    return {
        title: [[pattern.sub("", text) for text in row] for row in rows]
        for title, rows in all_texts(source).items()
    }


# --- what a workbook looks like --------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell as it is seen. `kind` is date, number, text, or blank; of a date `moment` has the
    hours too. `link` begins with # if it leads to a place in the workbook. `row` is for
    `row_height` and `leads_to`."""

    value: Any
    kind: str
    moment: datetime | None
    bold: bool
    filled: bool
    right: bool
    number_format: str
    link: str
    row: int


def read_cells(source: Source, title: str) -> list[dict[str, Cell]]:
    """As `read_sheet`, with the looks."""
    return _table(open_book(source), title).rows()


def header_cells(source: Source, title: str) -> dict[str, Cell]:
    return _table(open_book(source), title).header_cells()


def above_cells(source: Source, title: str) -> list[Cell]:
    """The cells over the header, but for those that are blank and lead nowhere."""
    return [one for one in _table(open_book(source), title).above() if one.value or one.link]


def summary_cells(source: Source) -> list[list[Cell]]:
    return _lines(open_book(source), "Summary")


def row_height(source: Source, title: str, row: Mapping[str, Cell]) -> int:
    """How high a row of `read_cells` is, in twentieths of a point."""
    height: int = open_book(source)[title].rowinfo_map[next(iter(row.values())).row].height
    return height


def leads_to(source: Source, link: str) -> tuple[str, dict[str, Any] | None]:
    """The sheet that a link within the workbook leads to, and the row, if it is one."""
    book = open_book(source)
    title, _, place = link.removeprefix("#").rpartition("!")
    title, number = title.strip("'"), int(place.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ$")) - 1
    if number == 0:
        return title, None
    for row in _table(book, title).rows():
        if next(iter(row.values())).row == number:
            return title, {name: cell.value for name, cell in row.items()}
    raise AssertionError(f"{link} leads to nothing")


@dataclass(frozen=True)
class _Table:
    """A sheet with a header."""

    lines: list[list[Cell]]
    top: int

    @property
    def header(self) -> list[str]:
        return [*self.header_cells()]

    def header_cells(self) -> dict[str, Cell]:
        named = {str(cell.value): cell for cell in self.lines[self.top] if cell.value != ""}
        filled = [cell for cell in self.lines[self.top] if cell.value != ""]
        assert len(named) == len(filled), "two columns have the same name"
        return named

    def above(self) -> list[Cell]:
        return [cell for row in self.lines[: self.top] for cell in row]

    def rows(self) -> list[dict[str, Cell]]:
        places = [n for n, cell in enumerate(self.lines[self.top]) if cell.value != ""]
        below = (row for row in self.lines[self.top + 1 :] if any(cell.value != "" for cell in row))
        return [
            dict(zip(self.header, [row[place] for place in places], strict=True)) for row in below
        ]


def _table(book: Any, title: str) -> _Table:
    sheet = book.sheet_by_name(title)
    assert sheet.panes_are_frozen, f"{title} has no header"
    lines = _lines(book, title)
    filled = [n for n in range(sheet.horz_split_pos) if any(cell.value != "" for cell in lines[n])]
    return _Table(lines, filled[-1])


def _lines(book: Any, title: str) -> list[list[Cell]]:
    sheet = book.sheet_by_name(title)
    kinds = {xlrd.XL_CELL_DATE: "date", xlrd.XL_CELL_NUMBER: "number", xlrd.XL_CELL_TEXT: "text"}

    def read(row: int, column: int) -> Cell:
        cell = sheet.cell(row, column)
        look = book.xf_list[cell.xf_index]
        link = sheet.hyperlink_map.get((row, column))
        is_date = cell.ctype == xlrd.XL_CELL_DATE
        moment = xlrd.xldate_as_datetime(cell.value, book.datemode) if is_date else None
        return Cell(
            value=str(moment.date()) if moment else cell.value,
            kind=kinds.get(cell.ctype, "blank"),
            moment=moment,
            bold=bool(book.font_list[look.font_index].bold),
            filled=bool(look.background.fill_pattern),
            right=look.alignment.hor_align == 3,
            number_format=str(book.format_map[look.format_key].format_str),
            link=_link(link) if link else "",
            row=row,
        )

    return [[read(row, column) for column in range(sheet.ncols)] for row in range(sheet.nrows)]


def _link(link: Any) -> str:
    target = link.url_or_path
    if isinstance(target, bytes):
        target = target.decode()
    return str(target) if target else f"#{link.textmark}"


# --- the report as JSON ----------------------------------------------------------------------


@functools.cache
def _schema() -> Any:
    schema = json.loads((DEPLOY / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def read_report(text: str | bytes) -> dict[str, Any]:
    """A report as JSON, which is what its schema says."""
    report: dict[str, Any] = json.loads(text)
    _schema().validate(report)
    return report


def read_accounts(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The accounts of a report in a file, by number, or by name if it is not known; none is
    there twice."""
    accounts = read_report(Path(path).read_text())["accounts"]
    found = {account["account"] or account["name"]: account for account in accounts}
    assert len(found) == len(accounts)
    return found


def rows_by_id(account: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of all checks of one account of a report."""
    return {row["id"]: row for result in account["results"] for row in result["rows"]}


# --- what is written into a workbook ---------------------------------------------------------


def a_row(
    target: str = "eu-west-1",
    *,
    item: str = "",
    cells: Mapping[str, Any] | None = None,
    message: str | tuple[str, ...] = "Fine",
    severity: str = "",
    control: str = "",
    **more: Any,
) -> Row:
    """A row that says that all is well, or with a severity a finding, which fails `control`."""
    parts = (message,) if isinstance(message, str) else message
    named = tuple(ControlFinding(one, target) for one in control.split(", ") if one)
    more["control_findings"] = (*named, *more.get("control_findings", ()))
    return Row(
        target=target,
        item=item,
        cells={**(cells or {})},
        message=Message(*parts),
        severity=severity,
        **more,
    )


def an_error(
    target: str = "eu-west-1",
    *,
    item: str = "",
    cells: Mapping[str, Any] | None = None,
    code: str = "AccessDenied",
    service: str = "",
    operation: str = "",
    **more: Any,
) -> Row:
    """A row of what could not be read."""
    error = AwsError(code=code, service=service, operation=operation, **more)
    return Row(target=target, item=item, cells={**(cells or {})}, error=error)


def a_result(check: str, rows: Iterable[Row] = (), **more: Any) -> CheckResult:
    """What a check found, by the check's name."""
    return CheckResult(check=CHECKS_BY_NAME[check], rows=[*rows], **more)


EVERYTHING = Question([*CHECKS_BY_NAME], [], 90, security_check.__version__)


def a_report(*rows: Row, check: str = "ec2-classic", **facts: Any) -> Report:
    """The report of a run of one check that found these rows, or of `results`."""
    known: dict[str, Any] = {
        "account": NUMBER,
        "auditor_arn": f"arn:aws:iam::{NUMBER}:user/auditor",
        "home_region": "us-east-1",
        "started": NOW,
        "question": EVERYTHING,
        "aliases": ["acme"],
        "regions": ["eu-west-1", "us-east-1"],
        "seconds": 3,
    }
    if "results" not in facts:
        known["results"] = [a_result(check, rows)]
    return Report(**{**known, **facts})
