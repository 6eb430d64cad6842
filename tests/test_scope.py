"""A report carries the question that it answers: what was asked, what was left out, and how."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import xlrd
from cloud import Cloud, Fault
from example import fill_organization

import security_check
from security_check import main, parse_arguments


def summary(path: Path) -> list[str]:
    """The texts of the Summary, from top to bottom."""
    sheet = xlrd.open_workbook(path).sheet_by_index(0)
    return [str(cell.value) for row in sheet.get_rows() for cell in row if cell.value != ""]


def question(path: Path) -> dict[str, Any]:
    (account,) = json.loads(path.read_text())["accounts"]
    found: dict[str, Any] = account["question"]
    return found


LIMITED = {
    "one check": (["--check", "mfa"], "limited to: 1 of 6 checks"),
    "two checks": (["--check", "mfa", "access-keys"], "limited to: 2 of 6 checks"),
    "a region": (["--region", "eu-west-1"], "limited to: 1 of 3 regions"),
    "a region left out": (["--exclude-region", "eu-west-1"], "limited to: 2 of 3 regions"),
    "both": (
        ["--check", "ec2-classic", "--region", "us-east-1"],
        "limited to: 1 of 6 checks, 1 of 3 regions",
    ),
    "older keys": (["--max-key-age", "1000"], "limited to: access keys older than 1,000 days"),
}


@pytest.mark.parametrize("what", LIMITED)
def test_a_limited_run_says_so_wherever_it_is_read(
    what: str, cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, limits = LIMITED[what]
    main([*arguments, "--json", "runs/{account}.json", "--output", "o.xls"])
    told = capsys.readouterr().out
    main(["--merge", "runs", "--output", "merged.xls"])
    merged = capsys.readouterr().out
    sheets = [" ".join(summary(tmp_path / name)) for name in ("o.xls", "merged.xls")]
    for text in (told, merged, *sheets):
        assert limits in text
        assert "everything was checked" not in text


FULL: dict[str, list[str]] = {
    "no option": [],
    "younger keys": ["--max-key-age", "30"],
    "all checks": ["--check", *(one.name for one in security_check.CHECKS)],
    "findings that do not fail": ["--fail-on", "critical"],
}


@pytest.mark.parametrize("what", FULL)
def test_everything_was_checked_is_said_of_a_full_run(
    what: str, cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*FULL[what], "--output", "o.xls"])
    for text in (capsys.readouterr().out, "\n".join(summary(tmp_path / "o.xls"))):
        assert "everything was checked" in text
        assert "limited" not in text


def test_the_question_stands_in_the_json(cloud: Cloud, tmp_path: Path) -> None:
    limits = ["--check", "mfa", "--exclude-region", "us-west-2", "--fail-on", "High"]
    main([*limits, "--json", "r.json", "--output", "o.xls"])
    assert question(tmp_path / "r.json") == {
        "checks": ["mfa"],
        "regions": [],
        "excluded_regions": ["us-west-2"],
        "accounts": [],
        "excluded_accounts": [],
        "max_key_age": 90,
        "fail_on": "High",
        "version": security_check.__version__,
        "rules": security_check.RULES_DATE,
    }


def test_the_summary_says_of_each_check_what_it_counts_or_that_it_was_not_asked(
    cloud: Cloud, tmp_path: Path
) -> None:
    main(["--check", "mfa", "--output", "o.xls"])
    texts = summary(tmp_path / "o.xls")
    section = texts[texts.index("What was asked") : texts.index("The audit")]
    said = dict(zip(section[1::2], section[2::2], strict=True))
    for check in security_check.CHECKS:
        assert check.coverage
        assert said[check.title] == (check.coverage if check.name == "mfa" else "not asked")
    assert said["Version"].startswith(f"security_check.py {security_check.__version__}, rules of ")


def test_accounts_that_are_left_out_are_not_asked_and_are_named(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fill_organization(cloud)
    cloud.layer.calls.clear()
    out = ["--exclude-account", "888888888888", "444444444444"]
    main(["--organization", *out, "--check", "mfa", "--json", "r.json", "--output", "o.xls"])
    told = capsys.readouterr().out
    assert "2 accounts left out" in told
    assert "444444444444" in " ".join(summary(tmp_path / "o.xls"))
    assert "444444444444" not in {call.account for call in cloud.layer.calls}
    accounts = json.loads((tmp_path / "r.json").read_text())["accounts"]
    assert not {"888888888888", "444444444444"} & {one["account"] for one in accounts}
    main(["--merge", "r.json", "--output", "m.xls"])
    assert "2 accounts left out" in capsys.readouterr().out


def test_an_account_that_is_left_out_of_a_merge_is_said(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_organization(cloud)
    only = [
        *("--exclude-account", "888888888888", "444444444444", "111111111111", "333333333333"),
        *("222222222222", "999999999999", "000000000012", "777777777777", "555555555555"),
        *("100000000001", "666666666666"),
    ]
    one = ["--account", "123456789012", "--check", "mfa", "--no-workbook"]
    main([*one, "--json", "runs/{account}.json"])
    capsys.readouterr()
    main(["--merge", "runs", "--organization", *only, "--output", "m.xls"])
    told = capsys.readouterr().out
    assert "11 accounts left out" in told
    assert "NoReport" not in told


REFUSED = {
    "no region is left": ["--exclude-region", "eu-west-1", "us-east-1", "us-west-2"],
    "the same region twice": ["--region", "eu-west-1", "--exclude-region", "eu-west-1"],
    "no organization": ["--exclude-account", "111111111111"],
    "no account number": ["--organization", "--exclude-account", "production"],
    "no severity": ["--fail-on", "severe"],
    "fail-on of a merge": ["--merge", ".", "--fail-on", "High"],
    "no file of options": ["@nothing"],
    "a quote without its end": ["@broken"],
    "a file of options that is no text": ["@picture"],
    "a file of options with a name that is none": ["@null"],
    "a file of options that names itself": ["@itself"],
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_arguments_are_one_line_and_exit_code_2(
    what: str, cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").write_text("--output 'a b\n")
    (tmp_path / "picture").write_bytes(b"\xff\xfe")
    (tmp_path / "null").write_text("@\0\n")
    (tmp_path / "itself").write_text("@itself\n")
    try:
        code: Any = main(REFUSED[what])
    except SystemExit as stop:
        code = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if "security_check.py: " in line]
    assert code == 2
    assert len([line for line in lines if not line.startswith("usage")]) == 1
    assert not [*tmp_path.glob("*.xls")]


LISTS = {
    "one": (["--region", "a"], ["a"]),
    "a list": (["--region", "a", "b"], ["a", "b"]),
    "repeated": (["--region", "a", "--region", "b"], ["a", "b"]),
    "both": (["--region", "a", "b", "--quiet", "--region", "c"], ["a", "b", "c"]),
}


@pytest.mark.parametrize("what", LISTS)
def test_options_take_lists(what: str) -> None:
    arguments, regions = LISTS[what]
    assert parse_arguments(arguments).region == regions
    assert parse_arguments([]).region == []


@pytest.mark.parametrize("option", ["--profile", "--check", "--merge", "--exclude-region"])
def test_all_options_that_may_be_repeated_take_lists(option: str) -> None:
    name = option.removeprefix("--").replace("-", "_")
    arguments = [option, "mfa", "access-keys", option, "cloudtrail"]
    assert getattr(parse_arguments(arguments), name) == ["mfa", "access-keys", "cloudtrail"]


def test_a_file_of_options_is_read_like_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "nightly").write_text(
        "# what cron runs\n--region eu-west-1 us-east-1  # ours\n\n--quiet\n--csv 'a folder'\n"
    )
    options = parse_arguments([f"@{tmp_path / 'nightly'}", "--region", "us-west-2"])
    assert options.region == ["eu-west-1", "us-east-1", "us-west-2"]
    assert (options.quiet, options.csv) == (True, "a folder")


FAIL_ON = {"Critical": 0, "High": 1, "Medium": 1, "Low": 1}


@pytest.mark.parametrize("severity", FAIL_ON)
def test_findings_below_a_severity_do_not_fail_the_run(
    severity: str, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty account has High findings: no trail records its API calls."""
    code = main(["--check", "cloudtrail", "--fail-on", severity, "--output", "o.xls"])
    assert code == FAIL_ON[severity]
    assert "4 findings, limited to: 1 of 6 checks" in capsys.readouterr().out


def test_a_gap_is_exit_code_3_whatever_fails_the_run(cloud: Cloud) -> None:
    cloud.layer.faults = [Fault("AccessDenied", "cloudtrail")]
    assert main(["--check", "cloudtrail", "--fail-on", "Critical", "--output", "o.xls"]) == 3


COLOURS: dict[str, tuple[dict[str, str], bool]] = {
    "a terminal": ({"TERM": "xterm"}, True),
    "NO_COLOR": ({"TERM": "xterm", "NO_COLOR": "1"}, False),
    "an empty NO_COLOR does not count": ({"TERM": "xterm", "NO_COLOR": ""}, True),
    "a dumb terminal": ({"TERM": "dumb"}, False),
}


@pytest.mark.parametrize("what", COLOURS)
def test_colours_are_shown_where_they_are_wanted(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, wanted = COLOURS[what]
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert security_check.shows_colour() is wanted


CSV: dict[str, tuple[list[str], str, int]] = {
    "one account": ([], "123456789012", 1),
    "an organization": (["--organization"], "overview", 12),
}


@pytest.mark.parametrize("what", CSV)
def test_every_sheet_is_one_csv_file_with_the_account_in_every_row(
    what: str, cloud: Cloud, tmp_path: Path
) -> None:
    arguments, whose, accounts = CSV[what]
    fill_organization(cloud)
    (tmp_path / "csv").mkdir()
    main([*arguments, "--csv", "csv", "--state", "state.json", "--output", "o.xls"])
    found = {path.name: path.read_text("utf-8-sig") for path in (tmp_path / "csv").iterdir()}
    sheets = ["accounts"] if accounts > 1 else []
    sheets += [one.name for one in security_check.CHECKS] + ["controls", "resolved"]
    assert sorted(found) == sorted(f"{whose}-{name}.csv" for name in sheets)
    for check in security_check.CHECKS:
        rows = [*csv.DictReader(found[f"{whose}-{check.name}.csv"].splitlines())]
        assert rows
        assert [*rows[0]][:4] == ["Severity", "Status", "Account", "Account name"]
        assert all(row["Account"] for row in rows)
    if accounts > 1:
        rows = [*csv.DictReader(found["overview-accounts.csv"].splitlines())]
        assert len(rows) == accounts
        books = {row["Workbook"] for row in rows} - {""}
        assert books == {path.name for path in tmp_path.glob("security_check_*.xls")}
