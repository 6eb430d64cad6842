"""A seventh check is one function under `@check`; nothing else changes: one is declared here
in a few lines, and is then found wherever the six are."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xlrd
from cloud import Cloud, Fault

import security_check
from security_check import CHECKS, ROOT, Account, Row, check, main, user_list, users

NAMES = ("alice", "test-bot", "test-robot")
ACCOUNT = "123456789012"
TODAY = r"\d{4}-\d\d-\d\d"


@pytest.fixture
def seventh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check, for one test: the others shall not see it."""
    monkeypatch.setattr(security_check, "CHECKS", [*CHECKS])

    @check(
        "Users",
        over=users,
        columns=("User", "Path", "Made"),
        about="Who has a user. Delete those that were made for a test.",
        docs="https://docs.aws.amazon.com/IAM/latest/UserGuide/id_users.html",
        links={"User": "iam/home#/users/details/{User}"},
        nothing="No user among {targets:,}",
    )
    def check_users(aws: Account, user: str) -> Iterator[Row]:
        if user != ROOT:
            about = user_list(aws)[user]
            cells = {"User": user, "Path": about["Path"], "Made": about["CreateDate"]}
            verdict = ("Made for a test", "Medium") if user.startswith("test-") else ("Fine",)
            yield Row(user, "", cells, *verdict)


@pytest.fixture
def staffed(cloud: Cloud, seventh: None) -> Cloud:
    """The account has three users, and the folder is ready for everything that is written."""
    for name in NAMES:
        cloud.client("iam").create_user(UserName=name, Path="/team/")
    cloud.layer.summary = {"AccountMFAEnabled": 1, "AccountAccessKeysPresent": 0}
    Path("csv").mkdir()
    Path("accept.txt").write_text("users/test-bot # it tests the tests\n")
    return cloud


def audit(*more: str) -> int:
    """Run the program, with all that it can write."""
    files = ["--output", "x.xls", "--json", "x.json", "--csv", "csv", "--state", "state.json"]
    return main([*files, "--accept", "accept.txt", *more])


def book() -> Any:
    return xlrd.open_workbook("x.xls")


def lines(title: str) -> list[dict[str, Any]]:
    """The rows of a sheet by column."""
    sheet = book().sheet_by_name(title)
    header, *rows = (sheet.row_values(n) for n in range(2, sheet.nrows))
    return [dict(zip(header, row, strict=True)) for row in rows]


def summary(first: str) -> list[list[Any]]:
    """The lines of the Summary that begin so."""
    sheet = book().sheet_by_name("Summary")
    return [row for row in map(sheet.row_values, range(sheet.nrows)) if row[0] == first]


def in_json() -> dict[str, dict[str, Any]]:
    """The check's rows in the report, which is what its schema says, by ID."""
    jsonschema = pytest.importorskip("jsonschema")
    report = json.loads(Path("x.json").read_text())
    schema = json.loads((Path(__file__).parent / "deploy/report.schema.json").read_text())
    jsonschema.validate(report, schema)
    *_, one = report["accounts"][0]["checks"]
    assert (one["name"], one["title"]) == ("users", "Users")
    return {row["id"]: row for row in one["rows"]}


def in_state() -> dict[str, dict[str, str]]:
    state: dict[str, Any] = json.loads(Path("state.json").read_text())["accounts"][ACCOUNT]
    return {id: entry for id, entry in state.items() if id.startswith("users/")}


def test_it_is_the_seventh_and_gone_after_the_test(seventh: None) -> None:
    assert [one.name for one in security_check.CHECKS] == [*(c.name for c in CHECKS), "users"]
    assert len(CHECKS) == 6


def test_it_has_a_sheet_like_the_others(staffed: Cloud) -> None:
    assert audit() == 1
    names = ["Summary", *(one.title for one in CHECKS), "Users", "Controls", "Resolved"]
    assert book().sheet_names() == names
    sheet = book().sheet_by_name("Users")
    assert sheet.cell_value(0, 0) == "Users"
    about = "Who has a user. Delete those that were made for a test."
    assert sheet.cell_value(1, 0).startswith(f"{about} To mend: ")
    endings = ("Result", "Severity", "Status", "Control", "First seen", "To mend", "ID")
    assert sheet.row_values(2) == ["User", "Path", "Made", *endings]
    shown = [(row["User"], row["Path"], row["Result"], row["ID"]) for row in lines("Users")]
    accepted = "NEW: Made for a test (accepted it tests the tests)"
    assert shown == [  # the most serious first
        ("test-robot", "/team/", "NEW: Made for a test", "users/test-robot"),
        ("test-bot", "/team/", accepted, "users/test-bot"),
        ("alice", "/team/", "Fine", "users/alice"),
    ]
    verdicts = [(row["Severity"], row["Status"]) for row in lines("Users")]
    assert verdicts == [("Medium", "FINDING"), ("Medium", "ACCEPTED"), ("", "OK")]
    made = sheet.cell(3, 2)
    assert made.ctype == xlrd.XL_CELL_DATE


def test_its_cells_lead_to_the_console_and_its_title_to_its_documentation(staffed: Cloud) -> None:
    audit()
    sheet = xlrd.open_workbook("x.xls", formatting_info=True).sheet_by_name("Users")
    links = {link.url_or_path for link in sheet.hyperlink_map.values()}
    console = "https://us-east-1.console.aws.amazon.com/iam/home#/users/details"
    assert {f"{console}/{name}" for name in NAMES} <= links
    assert "https://docs.aws.amazon.com/IAM/latest/UserGuide/id_users.html" in links


def test_it_has_a_line_on_the_summary_and_on_the_terminal(
    staffed: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    audit()
    (header,), (numbers,) = summary("Check"), summary("Users")
    counts = dict(zip(header[1:], numbers[1:], strict=True))
    told = {name: number for name, number in counts.items() if number}
    assert told == {"Medium": 1, "New": 1, "OK": 1, "ACCEPTED": 1}
    assert "test-robot: Made for a test" in [line[1] for line in summary("Medium")]
    out = capsys.readouterr().out
    assert re.search(r"^Users( +-){2} +1 +- +1 +1 +1 +-$", out, re.MULTILINE), out
    assert "\n  Medium    test-robot: Made for a test\n" in out.partition("New:")[2]


def test_its_rows_are_in_the_json(staffed: Cloud) -> None:
    audit()
    rows = in_json()
    assert [*rows] == [f"users/{name}" for name in NAMES]
    one = rows["users/test-robot"]
    assert re.match(TODAY, one["cells"].pop("Made"))
    assert re.fullmatch(TODAY, one.pop("first_seen"))
    assert one == {
        "id": "users/test-robot",
        "target": "test-robot",
        "part": "",
        "cells": {"User": "test-robot", "Path": "/team/"},
        "dates": ["Made"],
        "result": "Made for a test",
        "brief": ["", "", ""],
        "gap": None,
        "acceptance": None,
        "lapsed": False,
        "severity": "Medium",
        "control": "",
        "status": "FINDING",
        "new": True,
        "mend": "",
        "by_hand": "",
    }
    assert (rows["users/alice"]["status"], rows["users/alice"]["first_seen"]) == ("OK", "")


def test_it_has_a_csv_file(staffed: Cloud) -> None:
    audit()
    with Path(f"csv/{ACCOUNT}-users.csv").open(encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        rows = list(table)
    assert table.fieldnames == [*lines("Users")[0]]
    shown = [(row["User"], row["Path"], row["Status"], row["ID"]) for row in rows]
    assert shown == [
        ("test-robot", "/team/", "FINDING", "users/test-robot"),
        ("test-bot", "/team/", "ACCEPTED", "users/test-bot"),
        ("alice", "/team/", "OK", "users/alice"),
    ]
    assert all(re.fullmatch(TODAY, row["Made"]) for row in rows)


def test_it_may_be_asked_for_by_name_and_the_help_names_it(
    staffed: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit("--check", "users") == 1
    assert book().sheet_names() == ["Summary", "Users", "Resolved"]
    assert [path.name for path in Path("csv").iterdir()] == [f"{ACCOUNT}-users.csv"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "mfa, cloudtrail, s3-acls, users\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_its_findings_are_remembered_told_once_as_new_and_missed_when_gone(
    staffed: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    audit()
    assert [*in_state()] == ["users/test-bot", "users/test-robot"]
    assert in_state()["users/test-robot"]["result"] == "Made for a test"
    first = in_state()["users/test-robot"]["first_seen"]
    assert re.fullmatch(TODAY, first)

    staffed.client("iam").delete_user(UserName="test-robot")
    staffed.client("iam").create_user(UserName="test-late")
    capsys.readouterr()
    assert audit("--check", "users") == 1
    results = {row["User"]: row["Result"] for row in lines("Users")}
    assert results == {
        "test-late": "NEW: Made for a test",
        "test-bot": "Made for a test (accepted it tests the tests)",
        "alice": "Fine",
    }
    (gone,) = lines("Resolved")
    assert (gone["Finding"], gone["Result"]) == ("users/test-robot", "Made for a test")
    out = capsys.readouterr().out
    assert "1 finding (1 new, 1 resolved), everything was checked" in out
    assert "New:\n  Medium    test-late: Made for a test\n" in out
    assert "Resolved:\n  Made for a test (users/test-robot)\n" in out
    assert [*in_state()] == ["users/test-bot", "users/test-late"]


def test_its_findings_may_be_accepted(staffed: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    Path("accept.txt").write_text("users/test-* # they are ours\n")
    assert audit("--check", "users") == 0
    rows = in_json()
    assert {id: row["status"] for id, row in rows.items()} == {
        "users/alice": "OK",
        "users/test-bot": "ACCEPTED",
        "users/test-robot": "ACCEPTED",
    }
    decision = {"pattern": "users/test-*", "until": "", "reason": "they are ours"}
    assert rows["users/test-robot"]["acceptance"] == decision
    Path("accept.txt").write_text("users/test-* until 2020-01-31 # they are ours\n")
    capsys.readouterr()
    assert audit("--check", "users") == 1
    words = "Made for a test (acceptance expired, until 2020-01-31: they are ours)"
    told = " ".join(capsys.readouterr().out.split())
    assert f"Acceptance expired: Medium test-bot: {words}" in told


def test_users_that_may_not_be_listed_are_a_gap_and_nothing_is_said_to_be_gone(
    staffed: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    audit("--check", "users")
    before = in_state()
    staffed.layer.faults = [Fault("AccessDenied", "iam", "ListUsers")]
    capsys.readouterr()
    assert audit("--check", "users") == 3
    # root is looked at all the same, and the check has nothing to say of it
    assert [(row["User"], row["Result"], row["Status"], row["ID"]) for row in lines("Users")] == [
        ("users", "AccessDenied: iam ListUsers", "NOT CHECKED", "users/users/not-checked"),
        ("", "No user among 1", "OK", "users/nothing"),
    ]
    told = "Users: AccessDenied: iam ListUsers (needs iam:ListUsers), users/not-checked"
    assert told in [line[1] for line in summary("NOT CHECKED")]
    assert in_json()["users/users/not-checked"]["status"] == "NOT CHECKED"
    assert "0 findings (0 new, 0 resolved), 1 NOT CHECKED" in capsys.readouterr().out
    assert in_state() == before
