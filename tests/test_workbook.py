"""The workbook, read back: what it says, what it looks like, what its format can hold."""

from __future__ import annotations

import io
import struct
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import xlrd
import xlwt
from conftest import NOW, NUMBER, Canned
from python_calamine import CalamineWorkbook

import security_check
from security_check import (
    CHECKS,
    ROOT,
    Acceptance,
    CannotRun,
    LocalFile,
    Report,
    Row,
    Sheet,
    Unanswered,
    deliver,
    gap,
    workbook,
)

BY_NAME = {check.name: check for check in CHECKS}


def cells(check: str, *values: Any) -> dict[str, Any]:
    """The first cells of a row of the check."""
    return dict(zip(BY_NAME[check].columns, values, strict=False))


INSTANCE = cells("ec2-classic", "eu-west-1", "i-1", "web", "running", NOW)
UNREAD = gap("x", "", {"Region": "x"}, Unanswered("Denied", "x"))


def a_report(aws: Canned, *rows: Row, check: str = "ec2-classic", gone: Any = None) -> Report:
    return report_of(aws, [Sheet(BY_NAME[check], list(rows))], gone)


def report_of(aws: Canned, sheets: list[Sheet], gone: Any = None) -> Report:
    return Report(
        number=aws.number,
        arn=aws.arn,
        home=aws.region,
        started=aws.now,
        aliases=["acme"],
        regions=["eu-west-1", "us-east-1"],
        sheets=sheets,
        gone=gone,
        seconds=3,
    )


def opened(report: Report) -> Any:
    return xlrd.open_workbook(file_contents=workbook(report), formatting_info=True)


def bad(n: int, severity: str = "High") -> Row:
    shown = cells("ec2-classic", "eu-west-1", f"i-{n}")
    return Row("eu-west-1", f"i-{n}", shown, "Bad", severity, "X.1")


def column(sheet: Any, name: str) -> list[Any]:
    place = sheet.row_values(2).index(name)
    return [sheet.cell_value(n, place) for n in range(3, sheet.nrows)]


# --- what it says --------------------------------------------------------------------------


def test_the_summary_is_the_account_on_one_page(aws: Canned) -> None:
    silent = gap("us-east-1", "", {"Region": "us-east-1"}, Unanswered("Timeout", "x"))
    rows = [bad(1, "Critical"), bad(2), silent]
    book = opened(a_report(aws, *rows, Row("a", "", INSTANCE, "Fine")))
    summary = book.sheet_by_name("Summary")
    lines = [[cell for cell in summary.row_values(n) if cell != ""] for n in range(summary.nrows)]
    for line in (
        ["AWS security check"],
        ["2 findings, 1 NOT CHECKED"],
        ["Account", NUMBER],
        ["Alias", "acme"],
        ["Audited by", f"arn:aws:iam::{NUMBER}:user/auditor"],
        ["Started", "2026-11-23 12:00 UTC"],
        ["Duration", "3 s"],
        ["Regions", "eu-west-1, us-east-1"],
        ["Check", "Critical", "High", "Medium", "Low", "OK", "ACCEPTED", "NOT CHECKED"],
        ["EC2-Classic", 1.0, 1.0, 1.0, 1.0],
        ["Critical", "i-1: Bad (eu-west-1)"],
        ["High", "i-2: Bad (eu-west-1)"],
        ["NOT CHECKED", "EC2-Classic: Timeout: x, us-east-1/not-checked"],
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("code", "call", "words"),
    [
        ("AccessDenied", "iam ListUsers", "(needs iam:ListUsers)"),
        ("AccessDenied", "s3 ListBuckets", "(needs s3:ListAllMyBuckets)"),
        ("AccessDenied", "s3 GetPublicAccessBlock", "(needs s3:GetBucketPublicAccessBlock)"),
        (
            "AccessDenied",
            "s3control GetPublicAccessBlock",
            "(needs s3:GetAccountPublicAccessBlock)",
        ),
        ("UnauthorizedOperation", "ec2 DescribeInstances", "(needs ec2:DescribeInstances)"),
    ],
)
def test_a_gap_names_the_permission_that_is_missing(
    aws: Canned, code: str, call: str, words: str
) -> None:
    denied = gap("x", "", {"Region": "x"}, Unanswered(code, *call.split()))
    summary = opened(a_report(aws, denied)).sheet_by_name("Summary")
    assert f"EC2-Classic: {code}: {call} {words}, x/not-checked" in summary.col_values(1)


def test_ten_findings_are_worst_and_the_others_are_counted(aws: Canned) -> None:
    summary = opened(a_report(aws, *map(bad, range(23)))).sheet_by_name("Summary")
    assert len([c for c in summary.col_values(1) if ": Bad (eu-west-1)" in str(c)]) == 10
    assert "and 13 more" in summary.col_values(1)


def test_the_most_serious_comes_first_and_the_rest_stays_in_order(aws: Canned) -> None:
    rows = [
        Row("fine", "", INSTANCE, "Fine"),
        bad(1, "Low"),
        UNREAD,
        Row("known", "", INSTANCE, "Known", "Critical", acceptance=Acceptance("*", "", "why")),
        bad(2, "Critical"),
        bad(3, "Low"),
    ]
    sheet = opened(a_report(aws, *rows)).sheet_by_name("EC2-Classic")
    ids = [id.removeprefix("ec2-classic/") for id in column(sheet, "ID")]
    findings = ["eu-west-1/i-2", "eu-west-1/i-1", "eu-west-1/i-3"]
    assert ids == [*findings, "x/not-checked", "known", "fine"]


def test_every_sheet_ends_alike(aws: Canned) -> None:
    report = report_of(aws, [Sheet(check, []) for check in CHECKS])
    for sheet in report.sheets:
        sheet.rows.append(Row("nothing", "", {}, "Nothing"))
    book = opened(report)
    for check in CHECKS:
        header = book.sheet_by_name(check.title).row_values(2)
        ending = ["Result", "Severity", "Status", "Control", "To mend", "ID"]
        assert header == [*check.columns, *ending]


# --- what it looks like ----------------------------------------------------------------------


def test_dates_are_dates_and_numbers_numbers(aws: Canned) -> None:
    east = datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=9)))  # the day before in UTC
    shown = cells("access-keys", "alice", "AKIA", "Active", east, 1234567, "never")
    row = Row("k", "", shown, "Key is rotated")
    book = opened(a_report(aws, row, check="access-keys"))
    sheet = book.sheet_by_name("Access keys")
    created, age = sheet.cell(3, 3), sheet.cell(3, 4)
    assert created.ctype == xlrd.XL_CELL_DATE
    assert xlrd.xldate_as_datetime(created.value, 0) == datetime(2026, 1, 1, 18)
    form = book.format_map[book.xf_list[created.xf_index].format_key]
    assert form.format_str == "yyyy-mm-dd"
    assert (age.ctype, age.value) == (xlrd.XL_CELL_NUMBER, 1234567)


def test_numbers_are_right_and_so_are_the_words_over_them(aws: Canned) -> None:
    shown = cells("access-keys", "alice", "AKIA", "Active", NOW, 3, "never")
    row = Row("k", "", shown, "Key is rotated")
    book = opened(a_report(aws, row, check="access-keys"))
    summary, sheet = book.sheet_by_name("Summary"), book.sheet_by_name("Access keys")
    counts = summary.row(summary.col_values(0).index("Check"))
    for line, wanted in ((counts, range(1, 8)), (sheet.row(2), [4]), (sheet.row(3), [4])):
        sides = [book.xf_list[cell.xf_index].alignment.hor_align for cell in line]
        assert [n for n, side in enumerate(sides) if side == 3] == [*wanted]


@pytest.mark.posix
def test_days_are_of_utc_wherever_the_script_runs(
    aws: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        row = replace(bad(1), first_seen="2026-11-01", new=True)
        sheet = opened(a_report(aws, row, gone={})).sheet_by_name("EC2-Classic")
    finally:
        monkeypatch.undo()
        time.tzset()
    (seen,) = column(sheet, "First seen")
    assert xlrd.xldate_as_datetime(seen, 0) == datetime(2026, 11, 1)
    assert column(sheet, "Result") == ["NEW: Bad"]


@pytest.mark.parametrize("name", ["title", "note", "link", "Critical"])
def test_a_name_that_is_a_word_of_ours_is_a_name(aws: Canned, name: str) -> None:
    row = Row("x", "", cells("ec2-classic", "eu-west-1", "i-1", name), "Fine")
    assert opened(a_report(aws, row)).sheet_by_name("EC2-Classic").cell_value(3, 2) == name


def test_the_header_is_frozen_bold_and_printed_on_every_page(aws: Canned) -> None:
    book = opened(a_report(aws, bad(1)))
    sheet = book.sheet_by_name("EC2-Classic")
    assert sheet.panes_are_frozen
    assert sheet.horz_split_pos == 3
    assert book.font_list[book.xf_list[sheet.cell_xf_index(2, 0)].font_index].bold
    printed = {(one.name, one.scope): one.result.text for one in book.name_obj_list if one.builtin}
    last = sheet.row_values(2).index("Control")
    assert printed == {
        ("Print_Area", 0): f"Summary!$A$1:$L${book.sheet_by_name('Summary').nrows}",
        ("Print_Area", 1): f"'EC2-Classic'!$A$1:${'ABCDEFGHIJKL'[last]}$4".replace("'", ""),
        ("Print_Titles", 1): "EC2-Classic!$A$3:$IV$3",
    }


def test_links_lead_to_the_console_to_rows_and_back(aws: Canned) -> None:
    book = opened(a_report(aws, Row("a", "", INSTANCE, "Fine"), bad(7)))
    sheet, summary = book.sheet_by_name("EC2-Classic"), book.sheet_by_name("Summary")
    links = {
        place: link.url_or_path or f"#{link.textmark}"
        for place, link in sheet.hyperlink_map.items()
    }
    assert links == {
        (0, 5): "#Summary!A1",
        (0, 10): CHECKS[0].docs,
        (3, 1): "https://eu-west-1.console.aws.amazon.com/ec2/home?region=eu-west-1"
        "#InstanceDetails:instanceId=i-7",
        (4, 1): "https://eu-west-1.console.aws.amazon.com/ec2/home?region=eu-west-1"
        "#InstanceDetails:instanceId=i-1",
    }
    assert {link.textmark for link in summary.hyperlink_map.values()} == {
        "'EC2-Classic'!A1",
        "'EC2-Classic'!A4",
    }


@pytest.mark.parametrize(
    ("check", "values", "name", "home", "url"),
    [
        pytest.param(
            "security-groups",
            ("cn-north-1", "sg-1"),
            "Group ID",
            "cn-north-1",
            "https://cn-north-1.console.amazonaws.cn/ec2/home?region=cn-north-1"
            "#SecurityGroup:groupId=sg-1",
            id="China",
        ),
        pytest.param(
            "mfa",
            ("a+b=c,d.e@f-_",),
            "User",
            "us-gov-west-1",
            "https://us-gov-west-1.console.amazonaws-us-gov.com/iam/home"
            "#/users/details/a%2Bb%3Dc%2Cd.e%40f-_?section=security_credentials",
            id="GovCloud, and a name with everything",
        ),
        pytest.param("mfa", (ROOT,), "User", "us-east-1", "", id="root has no page"),
        pytest.param("security-groups", ("r",), "Group ID", "us-east-1", "", id="no group"),
        pytest.param(
            "s3-acls",
            ("my.bucket",),
            "Bucket",
            "us-east-1",
            "https://us-east-1.console.aws.amazon.com/s3/buckets/my.bucket?region=",
            id="a bucket whose region is not known",
        ),
    ],
)
def test_console_pages(check: str, values: Any, name: str, home: str, url: str) -> None:
    row = Row("x", "", cells(check, *values), "x")
    assert security_check.console_link(BY_NAME[check], name, row, home) == url


def test_the_summary_prints_upright_and_sheets_landscape_one_page_wide(aws: Canned) -> None:
    data = workbook(a_report(aws, bad(1)))
    setups = [
        struct.unpack_from("<HHhHHH", data, place + 4)
        for place in range(len(data))
        if data[place : place + 4] == b"\xa1\x00\x22\x00"
    ]
    assert [(width, height) for _, _, _, width, height, _ in setups] == [(1, 1), (1, 0)]
    assert [bool(options & 0b10) for *_, options in setups] == [True, False]  # bit 1: portrait
    assert f"&LAWS account {NUMBER}, 2026-11-23&R&P / &N".encode() in data


LINE = 270  # the height of a line, in twentieths of a point


@pytest.mark.parametrize(
    ("shown", "result", "height"),
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
    aws: Canned, shown: dict[str, Any], result: str, height: int
) -> None:
    row = Row("eu-west-1", "i-" + "x" * 200, {**INSTANCE, **shown}, result, "High")
    row = replace(row, mend=("ec2", "words", "--of", "a" * 200))
    sheet = opened(a_report(aws, row)).sheet_by_name("EC2-Classic")
    assert sheet.rowinfo_map[3].height == height
    assert len(sheet.cell_value(3, sheet.ncols - 1)) > 200


def test_a_new_row_is_seen_at_once(aws: Canned) -> None:
    rows = [replace(bad(1), first_seen="2026-11-01", new=True), bad(2)]
    book = opened(a_report(aws, *rows, gone={}))
    sheet = book.sheet_by_name("EC2-Classic")
    result = sheet.row_values(2).index("Result")
    looks = [book.xf_list[sheet.cell_xf_index(n, result)] for n in (3, 4)]
    assert [bool(book.font_list[look.font_index].bold) for look in looks] == [True, False]
    assert [look.background.fill_pattern for look in looks] == [1, 0]


def test_why_there_is_no_command_makes_no_row_high(aws: Canned) -> None:
    row = replace(bad(1), mend="its owner must enrol a device, and nobody else can do that")
    sheet = opened(a_report(aws, row)).sheet_by_name("EC2-Classic")
    assert sheet.rowinfo_map[3].height == LINE


def a_row_as_wide_as_can_be(check: security_check.Check) -> Row:
    words = "with some more words and " + "x" * 64
    shown: dict[str, Any] = {column: f"{column} {words}" for column in check.columns}
    row = Row("x", "y" * 200, shown, "A sentence. " * 9, "Critical", "CloudTrail.1, CloudTrail.4")
    return replace(row, mend=("words",) * 99, first_seen="2026-11-01", new=True)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_letter_on_paper_is_smaller_than_seven_points(aws: Canned, name: str) -> None:
    """A sheet is printed on one page's width, of letters of ten points."""
    for row in (a_row_as_wide_as_can_be(BY_NAME[name]), bad(1)):
        report = replace(a_report(aws, row, check=name, gone={}), name="x" * 50)
        for several in (False, True):
            results = replace(security_check.alone(report), several=several, of="all")
            data = security_check.book_of(results)
            book = xlrd.open_workbook(file_contents=data, formatting_info=True)
            sheet = book.sheet_by_name(BY_NAME[name].title)
            (area,) = (
                one
                for one in book.name_obj_list
                if one.name == "Print_Area" and book.sheet_names()[one.scope] == sheet.name
            )
            columns = area.result.value[0].coords[5]
            header = sheet.row_values(2)
            assert {"Result", "Severity"} <= {*header[:columns]}
            assert not {"To mend", "ID"} & {*header[:columns]}
            points = sum(sheet.colinfo_map[n].width for n in range(columns)) / 48.8
            assert sheet_fits(data, sheet.number) == (points * 0.7 <= security_check.PAPER)


def sheet_fits(data: bytes, number: int) -> bool:
    """Whether a sheet is shrunk to the width of a page, else it is printed at 70 per cent."""
    setups = [
        struct.unpack_from("<HHhHHH", data, place + 4)
        for place in range(len(data))
        if data[place : place + 4] == b"\xa1\x00\x22\x00"
    ]
    _, scale, _, pages_wide, _, _ = setups[number]
    assert pages_wide == 1 or scale == 70
    return bool(pages_wide)


def test_a_second_reader_sees_the_same(aws: Canned) -> None:
    data = workbook(a_report(aws, Row("a", "", INSTANCE, "Fine"), bad(7)))
    first = xlrd.open_workbook(file_contents=data)
    second = CalamineWorkbook.from_filelike(io.BytesIO(data))
    assert second.sheet_names == first.sheet_names()
    for sheet in first.sheets():
        rows = second.get_sheet_by_name(sheet.name).to_python(skip_empty_area=False)
        texts = [[c for c in row if isinstance(c, str) and c] for row in rows]
        expected = [
            [c.value for c in sheet.row(n) if c.ctype == xlrd.XL_CELL_TEXT and c.value]
            for n in range(sheet.nrows)
        ]
        assert texts == expected


def test_styles_are_shared(aws: Canned) -> None:
    few, many = (len(opened(a_report(aws, *map(bad, range(n)))).xf_list) for n in (10, 500))
    assert few == many


# --- any text, and as much as the format holds -------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("x")', " ", "1e+06", "0123"),
        *("Größe", "名前", "اسم", "🔒", "a\nb", "a\tb", "a\x07b", "x" * 32_767),
    ],
)
def test_a_cell_holds_the_text_and_never_a_formula(aws: Canned, text: str) -> None:
    row = Row("x", "", cells("ec2-classic", "eu-west-1", "i-1", text), text)
    cell = opened(a_report(aws, row)).sheet_by_name("EC2-Classic").cell(3, 2)
    assert (cell.ctype, cell.value) == (xlrd.XL_CELL_TEXT, text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param("x" * 40_000, "x" * 32_766 + "…", id="too long"),
        pytest.param("a\ud800b", "a?b", id="half a character"),
    ],
)
def test_text_that_the_format_cannot_hold(aws: Canned, text: str, written: str) -> None:
    row = Row("x", "", cells("ec2-classic", "eu-west-1", "i-1", text), "Fine")
    assert opened(a_report(aws, row)).sheet_by_name("EC2-Classic").cell_value(3, 2) == written


def test_a_sheet_that_is_full_continues_on_the_next(
    aws: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security_check, "MAX_ROWS", 3 + 10)
    book = opened(a_report(aws, *map(bad, range(25))))
    names = ["EC2-Classic", "EC2-Classic (2)", "EC2-Classic (3)"]
    assert book.sheet_names() == ["Summary", *names]
    ids = [id for name in names for id in column(book.sheet_by_name(name), "ID")]
    assert ids == [f"ec2-classic/eu-west-1/i-{n}" for n in range(25)]
    titles = [name for name in book.name_obj_list if name.name == "Print_Titles"]
    assert [name.scope for name in titles] == [1, 2, 3]


def test_the_format_holds_as_many_rows_as_we_think() -> None:
    sheet = xlwt.Workbook().add_sheet("full")
    sheet.write(security_check.MAX_ROWS - 1, 0, "last")
    with pytest.raises(ValueError, match="row index"):
        sheet.write(security_check.MAX_ROWS, 0, "one too many")


def test_more_rows_than_the_format_holds(aws: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security_check, "MAX_ROWS", 10)
    book = opened(a_report(aws, *map(bad, range(14)), UNREAD))
    assert {sheet.name: sheet.nrows for sheet in book.sheets()[1:]} == {
        "EC2-Classic": 10,
        "EC2-Classic (2)": 10,
        "EC2-Classic (3)": 4,
    }
    ends = {link.textmark for link in book.sheet_by_name("Summary").hyperlink_map.values()}
    assert {"'EC2-Classic'!A10", "'EC2-Classic (2)'!A4", "'EC2-Classic (3)'!A4"} <= ends
    assert "x/not-checked" in book.sheet_by_name("EC2-Classic (3)").row_values(3)[-1]


def test_what_is_gone_has_a_sheet(aws: Canned) -> None:
    gone = {"mfa/bob": {"first_seen": "2026-11-01", "result": "Not Enabled"}}
    sheet = opened(a_report(aws, bad(1), gone=gone)).sheet_by_name("Resolved")
    assert sheet.row_values(2) == ["Finding", "Result", "First seen", "Stood (days)"]
    assert [sheet.cell_value(3, n) for n in (0, 1, 3)] == ["mfa/bob", "Not Enabled", 22]


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.posix
def test_a_file_is_for_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    import os

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
        deliver(b"results", LocalFile(tmp_path / "gone" / "x.xls"))
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
