"""A seventh check is one function under `@check`; nothing else changes: one is declared here
in a few lines, and is then found wherever the six are."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cloud import Cloud, Fault
from conftest import in_an_account
from reading import (
    NUMBER,
    above_cells,
    above_header,
    open_book,
    read_accounts,
    read_cells,
    read_header,
    read_sheet,
    sheet_names,
    summary_section,
    summary_table,
)

import security_check
from security_check import CHECKS, ROOT, Account, Row, check, main, users_by_name, users

NAMES = ("alice", "test-bot", "test-robot")
TODAY = r"\d{4}-\d\d-\d\d"


@contextlib.contextmanager
def declared() -> Iterator[None]:
    """The check is there, and then no more: other tests shall not see it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(security_check, "CHECKS", [*CHECKS])

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
                about = users_by_name(aws)[user]
                cells = {"User": user, "Path": about["Path"], "Made": about["CreateDate"]}
                verdict = ("Made for a test", "Medium") if user.startswith("test-") else ("Fine",)
                yield Row(user, "", cells, *verdict)

        yield


def staff(cloud: Cloud) -> Cloud:
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


class Run(NamedTuple):
    """What a run of all checks came to."""

    code: int
    out: str
    folder: Path

    @property
    def book(self) -> Any:
        return open_book(self.folder / "x.xls")


@pytest.fixture
def staffed(cloud: Cloud) -> Iterator[Cloud]:
    with declared():
        yield staff(cloud)


def in_json(folder: Path = Path()) -> dict[str, dict[str, Any]]:
    """The check's rows in the report by ID."""
    (account,) = read_accounts(folder / "x.json").values()
    *_, last = account["checks"]
    assert (last["name"], last["title"]) == ("users", "Users")
    return {row["id"]: row for row in last["rows"]}


def in_state() -> dict[str, dict[str, str]]:
    state: dict[str, Any] = json.loads(Path("state.json").read_text())["accounts"][NUMBER]
    return {id: entry for id, entry in state.items() if id.startswith("users/")}


def test_it_is_the_seventh_and_gone_after_the_test() -> None:
    with declared():
        assert [one.name for one in security_check.CHECKS] == [*(c.name for c in CHECKS), "users"]
    assert len(security_check.CHECKS) == len(CHECKS) == 6


@pytest.fixture(scope="class")
def run(server: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, out = tmp_path_factory.mktemp("run"), io.StringIO()
    with in_an_account(server, folder) as cloud, declared(), contextlib.redirect_stdout(out):
        staff(cloud)
        code = audit()
    return Run(code, out.getvalue(), folder)


class TestRunOfAllChecks:
    """Of one run."""

    def test_it_has_a_result_like_the_others(self, run: Run) -> None:
        assert run.code == 1
        book = run.book
        titles = ["Summary", *(one.title for one in CHECKS), "Users", "Controls", "Resolved"]
        assert sheet_names(book) == titles
        title, *over = above_header(book, "Users")
        assert title == "Users"
        about = "Who has a user. Delete those that were made for a test."
        assert [text for text in over if text.startswith(f"{about} To mend: ")]
        like = read_header(book, "MFA")
        start, end = like.index("User"), like.index("MFA") + 1
        own = ["User", "Path", "Made"]
        assert read_header(book, "Users") == [*like[:start], *own, *like[end:]]
        rows = read_sheet(book, "Users")
        shown = [(row["User"], row["Path"], row["Result"], row["ID"]) for row in rows]
        accepted = "NEW: Made for a test (accepted it tests the tests)"
        assert shown == [  # the most serious first
            ("test-robot", "/team/", "NEW: Made for a test", "users/test-robot"),
            ("test-bot", "/team/", accepted, "users/test-bot"),
            ("alice", "/team/", "Fine", "users/alice"),
        ]
        verdicts = [(row["Severity"], row["Status"]) for row in rows]
        assert verdicts == [("Medium", "FINDING"), ("Medium", "ACCEPTED"), ("", "OK")]
        assert {row["Made"].kind for row in read_cells(book, "Users")} == {"date"}

    def test_its_cells_lead_to_the_console_and_its_title_to_its_documentation(
        self, run: Run
    ) -> None:
        book = run.book
        links = {row["User"].value: row["User"].link for row in read_cells(book, "Users")}
        console = "https://us-east-1.console.aws.amazon.com/iam/home#/users/details"
        assert links == {name: f"{console}/{name}" for name in NAMES}
        over = {cell.value: cell.link for cell in above_cells(book, "Users")}
        docs = "https://docs.aws.amazon.com/IAM/latest/UserGuide/id_users.html"
        assert over["AWS documentation"] == docs

    def test_it_has_a_line_on_the_summary_and_on_the_terminal(self, run: Run) -> None:
        book = run.book
        (counts,) = (row for row in summary_table(book, "Check") if row["Check"] == "Users")
        told = {name: number for name, number in counts.items() if number}
        assert told == {"Check": "Users", "Medium": 1, "New": 1, "OK": 1, "ACCEPTED": 1}
        worst = summary_section(book, "Worst findings")
        assert ("Medium", "test-robot: Made for a test") in worst
        assert re.search(r"^Users( +-){2} +1 +- +1 +1 +1 +-$", run.out, re.MULTILINE), run.out
        assert "\n  Medium    test-robot: Made for a test\n" in run.out.partition("New:")[2]

    def test_its_rows_are_in_the_json(self, run: Run) -> None:
        rows = in_json(run.folder)
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

    def test_it_has_a_csv_file(self, run: Run) -> None:
        with (run.folder / f"csv/{NUMBER}-users.csv").open(encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows = list(table)
        assert table.fieldnames == read_header(run.book, "Users")
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
    assert sheet_names("x.xls") == ["Summary", "Users", "Resolved"]
    assert [path.name for path in Path("csv").iterdir()] == [f"{NUMBER}-users.csv"]
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
    results = {row["User"]: row["Result"] for row in read_sheet("x.xls", "Users")}
    assert results == {
        "test-late": "NEW: Made for a test",
        "test-bot": "Made for a test (accepted it tests the tests)",
        "alice": "Fine",
    }
    (gone,) = read_sheet("x.xls", "Resolved")
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
    assert [
        (row["User"], row["Result"], row["Status"], row["ID"])
        for row in read_sheet("x.xls", "Users")
    ] == [
        ("users", "AccessDenied: iam ListUsers", "NOT CHECKED", "users/users/not-checked"),
        ("", "No user among 1", "OK", "users/nothing"),
    ]
    told = "Users: AccessDenied: iam ListUsers (needs iam:ListUsers), users/not-checked"
    assert ("NOT CHECKED", told) in summary_section("x.xls", "Not checked")
    assert in_json()["users/users/not-checked"]["status"] == "NOT CHECKED"
    assert "0 findings (0 new, 0 resolved), 1 NOT CHECKED" in capsys.readouterr().out
    assert in_state() == before
