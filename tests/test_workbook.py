"""The workbook, read back: what it says, what it looks like, what its format can hold."""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import xlrd
import xlwt
from making import accepted, check_result, finding, fine, known, not_checked, report, workbook_of
from python_calamine import CalamineWorkbook
from reading import (
    CHECKS_BY_NAME,
    NOW,
    NUMBER,
    Cell,
    above_cells,
    header_cells,
    leads_to,
    open_book,
    read_cells,
    read_column,
    read_header,
    read_sheet,
    row_height,
    sheet_names,
    summary_cells,
    summary_facts,
    summary_rows,
    summary_section,
    summary_table,
)

import security_check
from security_check import (
    BETTER,
    CHECKS,
    NEW,
    ROOT,
    WORSE,
    CannotRun,
    Check,
    LocalFile,
    Row,
    write_or_save_copy,
)

CLASSIC = CHECKS_BY_NAME["ec2-classic"].title
KEYS = CHECKS_BY_NAME["access-keys"].title


def instance_cells(**cells: Any) -> dict[str, Any]:
    named = {"Region": "eu-west-1", "Instance ID": "i-1", "Name": "web"}
    return {**named, "State": "running", "Launched": NOW, **cells}


def bad(n: int, severity: str = "High", **facts: Any) -> Row:
    cells = {"Region": "eu-west-1", "Instance ID": f"i-{n}"}
    about: dict[str, Any] = {"item": f"i-{n}", "severity": severity, "control": "X.1", **facts}
    return finding("eu-west-1", cells=cells, **about)


def good(target: str = "a", **cells: Any) -> Row:
    return fine(target, cells=instance_cells(**cells))


def unread(target: str = "x", error: str = "Denied: x") -> Row:
    return not_checked(target, error=error, cells={"Region": target})


def build_workbook(*rows: Row, check: str = "ec2-classic", **facts: Any) -> Any:
    """The workbook of a run of one check that found these rows."""
    return open_book(workbook_of(report(*rows, check=check, **facts)))


def only_row(book: Any, title: str = CLASSIC) -> dict[str, Cell]:
    (row,) = read_cells(book, title)
    return row


# --- what it says --------------------------------------------------------------------------


def test_the_summary_is_the_account_on_one_page() -> None:
    silent = unread("us-east-1", error="Timeout: x")
    book = build_workbook(bad(1, "Critical"), bad(2), silent, good())
    whose = f"AWS account {NUMBER} (acme), 2026-11-23"
    assert [f"AWS security check: {whose}"] in summary_rows(book)
    assert ["2 findings, 1 NOT CHECKED"] in summary_rows(book)
    assert summary_table(book, "Check") == [
        {
            **dict.fromkeys(("Evaluated", "Medium", "Low", "ACCEPTED"), ""),
            "Check": "EC2-Classic",
            **dict.fromkeys(("Critical", "High", "NOT CHECKED"), 1.0),
        }
    ]
    assert summary_section(book, "Worst findings") == [
        ("Critical", "i-1: Bad (eu-west-1)"),
        ("High", "i-2: Bad (eu-west-1)"),
    ]
    assert summary_section(book, "Not checked") == [
        ("NOT CHECKED", "EC2-Classic: Timeout: x: us-east-1")
    ]
    facts = {
        "Account": NUMBER,
        "Alias": "acme",
        "Audited by": f"arn:aws:iam::{NUMBER}:user/auditor",
        "Started": "2026-11-23 12:00 UTC",
        "Duration": "3 s",
    }
    assert facts.items() <= summary_facts(book).items()


@pytest.mark.parametrize(
    ("error", "permission"),
    [
        ("AccessDenied: iam ListUsers", "iam:ListUsers"),
        ("AccessDenied: s3 ListBuckets", "s3:ListAllMyBuckets"),
        ("AccessDenied: s3 GetPublicAccessBlock", "s3:GetBucketPublicAccessBlock"),
        ("AccessDenied: s3control GetPublicAccessBlock", "s3:GetAccountPublicAccessBlock"),
        ("UnauthorizedOperation: ec2 DescribeInstances", "ec2:DescribeInstances"),
    ],
)
def test_what_is_not_checked_names_the_permission_that_is_missing(
    error: str, permission: str
) -> None:
    told = dict(summary_section(build_workbook(unread(error=error)), "Not checked"))
    expected = f"EC2-Classic: {error} (needs {permission}): x"
    assert told["NOT CHECKED"] == expected


def test_ten_findings_are_worst_and_the_others_are_counted() -> None:
    told = summary_section(build_workbook(*map(bad, range(23))), "Worst findings")
    assert told == [*(("High", f"i-{n}: Bad (eu-west-1)") for n in range(10)), ("", "and 13 more")]


def test_the_most_serious_comes_first_and_the_rest_stays_in_order() -> None:
    decided = accepted(finding("known", severity="Critical", cells=instance_cells()))
    rows = [good("fine"), bad(1, "Low"), unread(), decided, bad(2, "Critical"), bad(3, "Low")]
    findings = ["eu-west-1/i-2", "eu-west-1/i-1", "eu-west-1/i-3"]
    ids = [*findings, "x/not-checked", "known", "fine"]
    assert read_column(build_workbook(*rows), CLASSIC, "ID") == [f"ec2-classic/{id}" for id in ids]


def test_every_sheet_begins_and_ends_alike() -> None:
    results = [check_result(check.name, fine("nothing")) for check in CHECKS]
    book = open_book(workbook_of(report(results=results)))
    ends = set()
    for check in CHECKS:
        header, own = read_header(book, check.title), [*check.columns]
        start = header.index(own[0])
        assert header[start : start + len(own)] == own
        ends.add((*header[:start], "...", *header[start + len(own) :]))
    (common,) = ends
    assert {*common} == {"...", "Result", "Severity", "Status", "Control", "Remediation", "ID"}


def test_in_an_overview_an_id_has_the_account_in_front() -> None:
    """A copy of the cell is a pattern of the accept file for this account alone."""
    one, other = report(bad(1)), report(bad(2), account="210987654321")
    book = open_book(workbook_of(one, other, multi_account=True))
    ids = [f"{NUMBER}/ec2-classic/eu-west-1/i-1", "210987654321/ec2-classic/eu-west-1/i-2"]
    assert read_column(book, CLASSIC, "ID") == ids


def test_a_resolved_finding_has_a_result() -> None:
    resolved = {"mfa/bob": known("2026-11-01", "Not Enabled")}
    book = build_workbook(bad(1), resolved=resolved)
    assert read_sheet(book, "Resolved") == [
        {
            "Severity": "",
            "Status": "RESOLVED",
            "Finding": "mfa/bob",
            "Result": "Not Enabled",
            "First seen": "2026-11-01",
            "Days open": 22,
        }
    ]


# --- what it looks like ----------------------------------------------------------------------


def key_cells(**cells: Any) -> dict[str, Any]:
    named = {"User": "alice", "Access key ID": "AKIA", "Key status": "Active"}
    return {**named, "Created": NOW, "Age (days)": 3, "Last used": "never", **cells}


def test_dates_are_dates_and_numbers_numbers() -> None:
    east = datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=9)))  # the day before in UTC
    cells = key_cells(Created=east, **{"Age (days)": 1234567})
    row = only_row(build_workbook(fine("k", cells=cells), check="access-keys"), KEYS)
    created, age = row["Created"], row["Age (days)"]
    assert (created.kind, created.number_format) == ("date", "yyyy-mm-dd")
    assert created.moment == datetime(2026, 1, 1, 18)
    assert (age.kind, age.value) == ("number", 1234567)


def on_the_right(cells: dict[str, Cell]) -> set[str]:
    return {name for name, cell in cells.items() if cell.right}


def test_numbers_are_right_and_so_are_the_words_over_them() -> None:
    book = build_workbook(fine("k", cells=key_cells()), check="access-keys")
    assert on_the_right(header_cells(book, KEYS)) == {"Age (days)"}
    assert on_the_right(only_row(book, KEYS)) == {"Age (days)"}
    (counts,) = (line for line in summary_cells(book) if line[0].value == "Check")
    words, *numbers = (cell for cell in counts if cell.value)
    assert not words.right
    assert all(cell.right for cell in numbers)
    assert len(numbers) == 7


@pytest.mark.posix
def test_days_are_of_utc_wherever_the_script_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        book = build_workbook(bad(1, first_seen="2026-11-01", change=NEW), resolved={})
    finally:
        monkeypatch.undo()
        time.tzset()
    row = only_row(book)
    assert row["First seen"].moment == datetime(2026, 11, 1)
    assert row["Result"].value == "NEW: Bad"


@pytest.mark.parametrize("name", ["title", "note", "link", "Critical"])
def test_a_name_that_is_a_word_of_ours_is_a_name(name: str) -> None:
    assert only_row(build_workbook(good(Name=name)))["Name"].value == name


def names_of(book: Any, title: str) -> dict[str, Any]:
    """The areas of a sheet that are built into the format, as (top, end, left, end)."""
    number = book.sheet_names().index(title)
    own = (one for one in book.name_obj_list if one.builtin and one.scope == number)
    return {one.name: one.result.value[0].coords[2:] for one in own}


def printed_columns(book: Any, title: str) -> list[str]:
    _, _, first, end = names_of(book, title)["Print_Area"]
    assert first == 0
    return read_header(book, title)[:end]


def test_the_header_is_frozen_bold_and_printed_on_every_page() -> None:
    book = build_workbook(bad(1))
    sheet, summary = book.sheet_by_name(CLASSIC), book.sheet_by_name("Summary")
    assert sheet.panes_are_frozen
    assert all(cell.bold for cell in header_cells(book, CLASSIC).values())
    rows = {cell.row for cell in header_cells(book, CLASSIC).values()}
    assert rows == {sheet.horz_split_pos - 1}
    areas = names_of(book, CLASSIC)
    assert areas["Print_Titles"][:2] == (sheet.horz_split_pos - 1, sheet.horz_split_pos)
    assert areas["Print_Area"][:2] == (0, sheet.nrows)
    assert {*read_header(book, CLASSIC)} - {*printed_columns(book, CLASSIC)} == {
        "Remediation",
        "ID",
    }
    assert names_of(book, "Summary") == {"Print_Area": (0, summary.nrows, 0, summary.ncols)}


def test_links_lead_to_the_console_to_rows_and_back() -> None:
    book = build_workbook(good(), bad(7))
    over = {cell.value: cell.link for cell in above_cells(book, CLASSIC) if cell.link}
    assert over == {
        "Summary": "#Summary!A1",
        "AWS documentation": CHECKS_BY_NAME["ec2-classic"].docs,
    }
    page = "https://eu-west-1.console.aws.amazon.com/ec2/home?region=eu-west-1"
    for row in read_cells(book, CLASSIC):
        links = {name: cell.link for name, cell in row.items() if cell.link}
        instance = row["Instance ID"].value
        assert links == {"Instance ID": f"{page}#InstanceDetails:instanceId={instance}"}
    summary = [leads_to(book, link) for link in links_of_the_summary(book)]
    assert [title for title, row in summary if row is None] == [CLASSIC]
    assert [row["Instance ID"] for _, row in summary if row] == ["i-7"]


def links_of_the_summary(book: Any) -> list[str]:
    return [cell.link for line in summary_cells(book) for cell in line if cell.link]


@pytest.mark.parametrize(
    ("check", "cells", "name", "home", "url"),
    [
        pytest.param(
            "security-groups",
            {"Region": "cn-north-1", "Group ID": "sg-1"},
            "Group ID",
            "cn-north-1",
            "https://cn-north-1.console.amazonaws.cn/ec2/home?region=cn-north-1"
            "#SecurityGroup:groupId=sg-1",
            id="China",
        ),
        pytest.param(
            "mfa",
            {"User": "a+b=c,d.e@f-_"},
            "User",
            "us-gov-west-1",
            "https://us-gov-west-1.console.amazonaws-us-gov.com/iam/home"
            "#/users/details/a%2Bb%3Dc%2Cd.e%40f-_?section=security_credentials",
            id="GovCloud, and a name with everything",
        ),
        pytest.param(
            "s3-acls",
            {"Bucket": "b", "Region": "eusc-de-east-1"},
            "Bucket",
            "eusc-de-east-1",
            "https://eusc-de-east-1.console.amazonaws-eusc.eu/s3/buckets/b?region=eusc-de-east-1",
            id="the European Sovereign Cloud",
        ),
        pytest.param("mfa", {"User": "a"}, "User", "us-iso-east-1", "", id="not on the Internet"),
        pytest.param("mfa", {"User": ROOT}, "User", "us-east-1", "", id="root has no page"),
        pytest.param(
            "security-groups", {"Region": "r"}, "Group ID", "us-east-1", "", id="no group"
        ),
        pytest.param(
            "s3-acls",
            {"Bucket": "my.bucket"},
            "Bucket",
            "us-east-1",
            "https://us-east-1.console.aws.amazon.com/s3/buckets/my.bucket?region=",
            id="a bucket whose region is not known",
        ),
    ],
)
def test_console_pages(check: str, cells: dict[str, str], name: str, home: str, url: str) -> None:
    book = build_workbook(fine("x", cells=cells), check=check, home_region=home)
    assert only_row(book, CHECKS_BY_NAME[check].title)[name].link == url


def paper(data: bytes) -> list[tuple[int, int, int, bool]]:
    """How each sheet is printed: its scale, how many pages wide and high, whether upright."""
    setups = [
        struct.unpack_from("<HHhHHH", data, place + 4)
        for place in range(len(data))
        if data[place : place + 4] == b"\xa1\x00\x22\x00"
    ]
    portrait = 0b10
    return [
        (scale, wide, high, bool(options & portrait)) for _, scale, _, wide, high, options in setups
    ]


def test_the_summary_prints_upright_and_sheets_landscape_one_page_wide() -> None:
    data = workbook_of(report(bad(1)))
    shapes = [(wide, high, upright) for _, wide, high, upright in paper(data)]
    assert shapes == [(1, 1, True), (1, 0, False)]
    assert f"&LAWS account {NUMBER} (acme), 2026-11-23&R&A, &P".encode() in data


LINE = 270  # the height of a line, in twentieths of a point


@pytest.mark.parametrize(
    ("cells", "result", "height"),
    [
        pytest.param({}, "Bad", LINE, id="a line"),
        pytest.param({"Launched": NOW.replace(microsecond=123456)}, "Bad", LINE, id="a date"),
        pytest.param({"Instance ID": "i-" + "0" * 60}, "Bad", LINE, id="a long ID"),
        pytest.param({}, "seven words " * 6, 2 * LINE, id="a sentence of two lines"),
        pytest.param({"Name": "a very long name of a small machine"}, "", 2 * LINE, id="a name"),
        pytest.param({"Name": "x " * 10_000}, "", 20 * LINE, id="a novel"),
    ],
)
def test_words_make_rows_high_and_ids_do_not(
    cells: dict[str, Any], result: str, height: int
) -> None:
    row = finding(
        "eu-west-1",
        item="i-" + "x" * 200,
        message=result,
        cells=instance_cells(**cells),
        command="aws ec2 words --of " + "a" * 200,
    )
    book = build_workbook(row)
    assert row_height(book, CLASSIC, only_row(book)) == height
    assert len(only_row(book)["ID"].value) > 200


def test_a_row_that_is_new_or_worse_is_seen_at_once() -> None:
    new = bad(1, first_seen="2026-11-01", change=NEW)
    worse = bad(2, first_seen="2026-10-01", change=WORSE, was="Less bad")
    better = bad(3, first_seen="2026-10-01", change=BETTER, was="Very bad")
    book = build_workbook(new, worse, better, bad(4), resolved={})
    results = {row["Result"].value: row["Result"] for row in read_cells(book, CLASSIC)}
    assert {text: (cell.bold, cell.filled) for text, cell in results.items()} == {
        "NEW: Bad": (True, True),
        "WORSE: Bad (was: Less bad)": (True, True),
        "Bad (was: Very bad)": (False, False),
        "Bad": (False, False),
    }


def test_why_there_is_no_command_makes_no_row_high() -> None:
    why = "its owner must enrol a device, and nobody else can do that"
    book = build_workbook(bad(1, manual=why))
    assert row_height(book, CLASSIC, only_row(book)) == LINE


def as_wide_as_can_be(check: Check) -> Row:
    words = "with some more words and " + "x" * 64
    return finding(
        "x",
        item="y" * 200,
        message="A sentence. " * 9,
        severity="Critical",
        control="CloudTrail.1, CloudTrail.4",
        cells={column: f"{column} {words}" for column in check.columns},
        command="words " * 99,
        first_seen="2026-11-01",
        change=NEW,
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("multi_account", [False, True], ids=["an account", "several"])
def test_no_letter_on_paper_is_smaller_than_seven_points(check: Check, multi_account: bool) -> None:
    """A sheet is printed on one page's width, of letters of ten points."""
    for row in (as_wide_as_can_be(check), bad(1)):
        one = report(row, check=check.name, name="x" * 50, resolved={})
        data = workbook_of(one, multi_account=multi_account)
        book = open_book(data)
        columns = printed_columns(book, check.title)
        assert {"Result", "Severity"} <= {*columns}
        assert not {"Remediation", "ID"} & {*columns}
        sheet = book.sheet_by_name(check.title)
        points = sum(sheet.colinfo_map[n].width for n in range(len(columns))) / 48.8
        scale, pages_wide, _, _ = paper(data)[sheet.number]
        assert pages_wide == 1 or scale == 70
        assert bool(pages_wide) == (points * 0.7 <= security_check.PAGE_WIDTH_PT)


def test_a_second_reader_sees_the_same() -> None:
    data = workbook_of(report(good(), bad(7)))
    first, second = open_book(data), CalamineWorkbook.from_filelike(io.BytesIO(data))
    assert second.sheet_names == first.sheet_names()
    for sheet in first.sheets():
        rows = second.get_sheet_by_name(sheet.name).to_python(skip_empty_area=False)
        texts = [[c for c in row if isinstance(c, str) and c] for row in rows]
        expected = [
            [c.value for c in sheet.row(n) if c.ctype == xlrd.XL_CELL_TEXT and c.value]
            for n in range(sheet.nrows)
        ]
        assert texts == expected


def test_styles_are_shared() -> None:
    few, many = (len(build_workbook(*map(bad, range(n))).xf_list) for n in (10, 500))
    assert few == many


# --- any text, and as much as the format holds -------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("x")', " ", "1e+06", "0123"),
        *("Größe", "名前", "اسم", "🔒", "a\nb", "a\tb", "a\x07b", "x" * 32_767),
    ],
)
def test_a_cell_holds_the_text_and_never_a_formula(text: str) -> None:
    cell = only_row(build_workbook(good(Name=text)))["Name"]
    assert (cell.kind, cell.value) == ("text", text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param("x" * 40_000, "x" * 32_766 + "…", id="too long"),
        pytest.param("a\ud800b", "a?b", id="half a character"),
    ],
)
def test_text_that_the_format_cannot_hold(text: str, written: str) -> None:
    assert only_row(build_workbook(good(Name=text)))["Name"].value == written


def ids_of(book: Any, titles: Iterable[str]) -> list[str]:
    return [id for title in titles for id in read_column(book, title, "ID")]


def test_a_result_that_is_full_continues_on_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security_check, "MAX_ROWS", 13)
    book = build_workbook(*map(bad, range(25)))
    titles = ["EC2-Classic", "EC2-Classic (2)", "EC2-Classic (3)"]
    assert sheet_names(book) == ["Summary", *titles]
    assert ids_of(book, titles) == [f"ec2-classic/eu-west-1/i-{n}" for n in range(25)]
    assert all("Print_Titles" in names_of(book, title) for title in titles)


def test_the_format_holds_as_many_rows_as_we_think() -> None:
    sheet = xlwt.Workbook().add_sheet("full")
    sheet.write(security_check.MAX_ROWS - 1, 0, "last")
    with pytest.raises(ValueError, match="row index"):
        sheet.write(security_check.MAX_ROWS, 0, "one too many")


def test_more_rows_than_the_format_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security_check, "MAX_ROWS", 11)
    book = build_workbook(*map(bad, range(14)), unread())
    titles = ["EC2-Classic", "EC2-Classic (2)", "EC2-Classic (3)"]
    assert [book.sheet_by_name(title).nrows for title in titles[:2]] == [11, 11]
    assert read_column(book, titles[2], "ID") == ["ec2-classic/x/not-checked"]
    assert len(ids_of(book, titles)) == 15
    told = [leads_to(book, link) for link in links_of_the_summary(book)]
    assert {title for title, row in told if row} == {*titles}
    ids = [f"ec2-classic/eu-west-1/i-{n}" for n in range(10)]
    assert [row["ID"] for _, row in told if row] == ["ec2-classic/x/not-checked", *ids]


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.posix
def test_a_file_is_for_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        LocalFile(tmp_path / "x.xls").write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "x.xls").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_is_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CannotRun, match=r"No such file or directory; the results are in ") as why:
        write_or_save_copy(LocalFile(tmp_path / "gone" / "x.xls"), b"results")
    assert Path(str(why.value).rpartition(" in ")[2]).read_bytes() == b"results"


def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "x.xls"
    old.write_bytes(b"old")

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdopen", full)
    with pytest.raises(OSError, match="No space"):
        LocalFile(old).write(b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.xls": b"old"}
