"""What is on the screen when a sheet is opened on a laptop, without scrolling.

Widths and heights are read from the workbook: a digit of Arial 10 is 7 pixels wide, and a point
is 96/72 pixels high. Of 1366 by 768 pixels a spreadsheet program leaves about this for cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xlrd
from cloud import Cloud
from example import fill_organization

from security_check import MAX_ROW_HEIGHT, Column, lines_needed, main

WIDTH, HEIGHT = 1366 - 60, 768 - 300  # without row numbers, ribbon, tabs, task bar
DIGIT, POINT = 7, 96 / 72  # pixels


def shown(sheet: Any) -> list[list[Any]]:
    """The rows and columns in the first screen."""
    wide, columns = 0.0, 0
    while columns < sheet.ncols and wide < WIDTH:
        info = sheet.colinfo_map.get(columns)
        wide += (info.width if info else 2560) / 256 * DIGIT
        columns += wide <= WIDTH
    high, rows = 0.0, 0
    while rows < sheet.nrows and high < HEIGHT:
        info = sheet.rowinfo_map.get(rows)
        high += (info.height if info else 255) / 20 * POINT
        rows += high <= HEIGHT
    return [[cell.value for cell in sheet.row(row)[:columns]] for row in range(rows)]


def texts(sheet: Any) -> list[str]:
    return [str(value) for row in shown(sheet) for value in row if value != ""]


@pytest.fixture(scope="module")
def books(server: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The overview of the demo organization, and the workbook of its largest account."""
    folder = tmp_path_factory.mktemp("books")
    server.reset()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        fill_organization(server)
        main(["--organization", "--state", "state.json", "--output", "{account}.xls"])
    yield {
        name: xlrd.open_workbook(folder / f"{name}.xls", formatting_info=True)
        for name in ("overview", "123456789012")
    }


ACCOUNT, OVERVIEW = "123456789012", "overview"
FIRST_SCREEN = {
    (ACCOUNT, "Summary"): [
        "AWS security check: AWS account 123456789012 (harbour-books), ",
        " findings (",
        "All 6 checks, all regions, ",
        "Evaluated",
        "Not checked",
        "(needs ec2:DescribeInstances): us-west-2",
        "Add to the policy: ",
        "Worst findings",
        "Critical",
    ],
    (OVERVIEW, "Summary"): [
        "AWS security check: AWS organization of 123456789012, ",
        "Accounts",
        "Not checked",
        "888888888888",
        "Worst findings",
    ],
    (OVERVIEW, "Accounts"): ["Severity", "Status", "Account", "Name", "Result", "NOT CHECKED"],
    (ACCOUNT, "EC2-Classic"): ["Severity", "Status", "Region", "Instance ID", "Result"],
    (ACCOUNT, "Security groups"): ["Severity", "Status", "Group ID", "Ports", "Open to", "Used by"],
    (ACCOUNT, "Access keys"): ["Severity", "Status", "User", "Age (days)", "Last used", "Result"],
    (ACCOUNT, "MFA"): ["Severity", "Status", "User", "Console password", "Result", "Control"],
    (ACCOUNT, "CloudTrail"): ["Severity", "Status", "Region", "Trail", "Logging", "Result"],
    (ACCOUNT, "S3 ACLs"): ["Severity", "Status", "Bucket", "Grantee", "Permission"],
    (ACCOUNT, "Controls"): ["Severity", "Status", "Control", "Requirement", "Evaluated", "Failed"],
    (ACCOUNT, "Resolved"): ["Severity", "Status", "Finding", "Result", "First seen"],
    (OVERVIEW, "Security groups"): ["Severity", "Status", "Account", "Account name", "Group ID"],
    (OVERVIEW, "S3 ACLs"): ["Severity", "Status", "Account", "Bucket", "Grantee"],
}


@pytest.mark.parametrize(("book", "title"), FIRST_SCREEN)
def test_what_matters_is_on_the_first_screen(book: str, title: str, books: dict[str, Any]) -> None:
    found = texts(books[book].sheet_by_name(title))
    for wanted in FIRST_SCREEN[book, title]:
        assert any(wanted in text for text in found), wanted


@pytest.mark.parametrize("book", [ACCOUNT, OVERVIEW])
def test_every_sheet_begins_with_severity_and_status_which_stay(
    book: str, books: dict[str, Any]
) -> None:
    for sheet in books[book].sheets()[1:]:
        header = sheet.row_values(sheet.horz_split_pos - 1)
        assert header[:2] == ["Severity", "Status"], sheet.name
        assert (sheet.panes_are_frozen, sheet.vert_split_pos) == (1, 2)


@pytest.mark.parametrize("book", [ACCOUNT, OVERVIEW])
def test_a_blank_row_stands_between_the_note_and_the_header(
    book: str, books: dict[str, Any]
) -> None:
    """Else filters, sorting and pivot tables take the title for the header."""
    for sheet in books[book].sheets()[1:]:
        row = sheet.horz_split_pos - 2
        assert set(sheet.row_values(row)) == {""}
        assert sheet.rowinfo_map[row].height < 100


def test_a_row_of_one_line_is_one_line_high(books: dict[str, Any]) -> None:
    sheet = books[ACCOUNT].sheet_by_name("EC2-Classic")
    heights = {
        sheet.cell_value(row, 1): sheet.rowinfo_map[row].height
        for row in range(sheet.horz_split_pos, sheet.nrows)
    }
    assert heights["FINDING"] == 270
    accounts = books[OVERVIEW].sheet_by_name("Accounts")
    rows = range(accounts.horz_split_pos, accounts.nrows)
    high = [accounts.rowinfo_map[row].height for row in rows if accounts.cell_value(row, 0)]
    assert high.count(270) > len(high) / 2


def test_the_label_of_a_line_is_no_link(books: dict[str, Any]) -> None:
    """A link is blue, which cannot be read on the colours of severities."""
    for book in books.values():
        sheet = book.sheet_by_name("Summary")
        for row, column in sheet.hyperlink_map:
            assert sheet.cell_value(row, column) in ("show", *book.sheet_names())


def test_a_note_on_commands_stands_where_commands_are(books: dict[str, Any]) -> None:
    for sheet in books[ACCOUNT].sheets()[1:8]:
        header = sheet.row_values(sheet.horz_split_pos - 1)
        if "Remediation" in header:
            cells = sheet.col_values(header.index("Remediation"), sheet.horz_split_pos)
            commands = any(str(cell).startswith("aws ") for cell in cells)
            assert ("read a command first" in str(sheet.cell_value(1, 0))) is commands


def test_the_file_names_its_author(books: dict[str, Any]) -> None:
    assert {book.user_name for book in books.values()} == {"security_check.py 2.0"}


def test_no_row_is_higher_than_the_format_allows(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Many accounts that are left out make one long line of the Summary."""
    numbers = [f"{n:012}" for n in range(1, 2000)]
    fill_organization(cloud)
    main(["--organization", "--exclude-account", *numbers, "--output", "o.xls"])
    sheet = xlrd.open_workbook(tmp_path / "o.xls", formatting_info=True).sheet_by_index(0)
    assert max(info.height for info in sheet.rowinfo_map.values()) == MAX_ROW_HEIGHT == 409 * 20


LINES = {
    "": 1,
    "short": 1,
    "1 interface, none public": 2,
    "x" * 40: 3,
    "averyveryverylongword and more": 3,
}


@pytest.mark.parametrize("text", LINES)
def test_lines_are_counted_as_words_are_wrapped(text: str) -> None:
    assert lines_needed(text, 12) == LINES[text]
    assert Column().width > 12
