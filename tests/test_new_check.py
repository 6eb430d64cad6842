"""A seventh check is one function below `@check`, and nothing else changes: checks are declared
here in a few lines, and are then found wherever the six are."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cloud import Cloud, Fault
from conftest import Clock, in_an_account
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
from security_check import (
    CHECKS,
    MEDIUM,
    ROOT,
    USER_TARGETS,
    Account,
    Control,
    ControlFinding,
    Message,
    Row,
    Rows,
    TargetKind,
    check,
    main,
    regions,
    users_by_name,
)

NAMES = ("alice", "test-bot", "test-robot")
DAY = r"\d{4}-\d\d-\d\d"
CONTROL = Control(MEDIUM, "No user was made for a test", cis_5="9.9")


@contextlib.contextmanager
def more_checks() -> Iterator[None]:
    """Checks declared inside are forgotten at the end: other tests must not see them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(security_check, "CHECKS", [*CHECKS])
        yield


@contextlib.contextmanager
def declared() -> Iterator[None]:
    """A seventh check, with a control of its own."""
    with more_checks():

        @check(
            "Users",
            targets=USER_TARGETS,
            columns=("User", "Path", "Made"),
            description="Who has a user. Delete those that were made for a test.",
            docs="https://docs.aws.amazon.com/IAM/latest/UserGuide/id_users.html",
            console_links={"User": "iam/home#/users/details/{User}"},
            empty_message="No user among {targets:,}",
            controls={"OWN.1": CONTROL},
        )
        def check_users(aws: Account, user: str) -> Rows:
            if user == ROOT:
                return 0
            about = users_by_name(aws)[user]
            cells = {"User": user, "Path": about["Path"], "Made": about["CreateDate"]}
            if user.startswith("test-"):
                failed = (ControlFinding("OWN.1", user),)
                message = Message("made for a test")
                yield Row(user, "", cells, message, MEDIUM, control_findings=failed)
            else:
                yield Row(user, "", cells, Message("Fine"))
            return Counter({"": 1, "OWN.1": 1})

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
    """The outcome of a run of all checks."""

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
    *_, last = account["results"]
    assert (last["check"], last["title"], last["complete"]) == ("users", "Users", True)
    return {row["id"]: row for row in last["rows"]}


def in_state() -> dict[str, dict[str, Any]]:
    """The check's findings that are remembered, by ID."""
    state: dict[str, Any] = json.loads(Path("state.json").read_text())["accounts"][NUMBER]
    return {id: known for id, known in state["findings"].items() if id.startswith("users/")}


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
        description = "Who has a user. Delete those that were made for a test."
        assert description in over
        like = read_header(book, "MFA")
        start, end = like.index("User"), like.index("MFA") + 1
        own = ["User", "Path", "Made"]
        assert read_header(book, "Users") == [*like[:start], *own, *like[end:]]
        rows = read_sheet(book, "Users")
        shown = [(row["User"], row["Path"], row["Result"], row["ID"]) for row in rows]
        accepted = "Made for a test (accepted it tests the tests)"
        assert shown == [  # the most serious first
            ("test-robot", "/team/", "Made for a test", "users/test-robot"),
            ("test-bot", "/team/", accepted, "users/test-bot"),
            ("alice", "/team/", "Fine", "users/alice"),
        ]
        levels = [(row["Severity"], row["Status"], row["Control"]) for row in rows]
        assert levels == [
            ("Medium", "FINDING", "OWN.1"),
            ("Medium", "ACCEPTED", "OWN.1"),
            ("", "OK", ""),
        ]
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
        shown = {name: number for name, number in counts.items() if number}
        assert shown == {"Check": "Users", "Evaluated": 3, "Medium": 1, "ACCEPTED": 1}
        worst = summary_section(book, "Worst findings")
        assert ("Medium", "test-robot: made for a test") in worst
        assert re.search(r"^Users +3( +-){2} +1( +-){2} +1 +-$", run.out, re.MULTILINE), run.out
        assert "\n  Medium    test-robot: made for a test\n" in run.out.partition("Worst:")[2]
        assert "New:" not in run.out  # there is nothing yet to compare with

    def test_its_rows_are_in_the_json(self, run: Run) -> None:
        rows = in_json(run.folder)
        assert [*rows] == [f"users/{name}" for name in NAMES]
        one = rows["users/test-robot"]
        assert re.match(DAY, one["cells"].pop("Made"))
        assert re.fullmatch(DAY, one.pop("first_seen"))
        assert one == {
            "id": "users/test-robot",
            "target": "test-robot",
            "item": "",
            "cells": {"User": "test-robot", "Path": "/team/"},
            "dates": ["Made"],
            "result": "Made for a test",
            "message": {"before": "made for a test", "item": "", "after": ""},
            "error": None,
            "acceptance": None,
            "acceptance_ended": "",
            "severity": "Medium",
            "control": "OWN.1",
            "controls": ["OWN.1"],
            "control_findings": [
                {"control": "OWN.1", "resource": "test-robot", "status": "FAILED"}
            ],
            "status": "FINDING",
            "extent": [],
            "resource": "",
            "fully_read": True,
            "change": "",
            "was": "",
            "remediation": {"command": "", "manual": ""},
            "kind": "",
            "priority": 0,
            "arn": f"arn:aws:iam::{NUMBER}:user/team/test-robot",
            "facts": {},
        }
        assert (rows["users/alice"]["status"], rows["users/alice"]["first_seen"]) == ("OK", "")

    def test_its_control_is_decided_like_the_others(self, run: Run) -> None:
        shown = {row["Control"]: row for row in read_sheet(run.book, "Controls")}
        assert [*shown][-1] == "OWN.1"
        assert shown["OWN.1"] == {
            "Control": "OWN.1",
            "Requirement": "No user was made for a test",
            "Severity": "Medium",
            "Status": "FAILED",
            "Evaluated": 3,
            "Failed": 2,
            "CIS 5.0.0": "9.9",
            "CIS 3.0.0": "",
            "PCI DSS 4.0.1": "",
            "Sheet": "Users",
        }
        report = json.loads((run.folder / "x.json").read_text())
        assert report["controls"]["OWN.1"]["requirement"] == "No user was made for a test"
        status = report["accounts"][0]["controls"]["OWN.1"]
        assert status == {"status": "FAILED", "evaluated": 3, "failed": 2}

    def test_it_has_a_csv_file(self, run: Run) -> None:
        with (run.folder / f"csv/{NUMBER}-users.csv").open(encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows = list(table)
        severity, status, *others = read_header(run.book, "Users")
        assert table.fieldnames == [severity, status, "Account", "Account name", *others]
        assert {row["Account"] for row in rows} == {NUMBER}
        shown = [(row["User"], row["Path"], row["Status"], row["ID"]) for row in rows]
        assert shown == [
            ("test-robot", "/team/", "FINDING", "users/test-robot"),
            ("test-bot", "/team/", "ACCEPTED", "users/test-bot"),
            ("alice", "/team/", "OK", "users/alice"),
        ]
        assert all(re.fullmatch(DAY, row["Made"]) for row in rows)


def test_it_may_be_asked_for_by_name_and_the_help_names_it(
    staffed: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit("--check", "users") == 1
    assert sheet_names("x.xls") == ["Summary", "Users", "Controls", "Resolved"]
    written = {f"{NUMBER}-{sheet}.csv" for sheet in ("users", "controls", "resolved")}
    assert {path.name for path in Path("csv").iterdir()} == written
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "mfa, cloudtrail, s3-acls, users\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_its_findings_are_remembered_new_for_a_day_and_resolved_when_gone(
    staffed: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.set("2030-08-01")
    audit()
    assert [*in_state()] == ["users/test-bot", "users/test-robot"]
    assert in_state()["users/test-robot"]["result"] == "Made for a test"
    assert in_state()["users/test-robot"]["first_seen"] == "2030-08-01"

    clock.set("2030-09-01")
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
    assert (gone["First seen"], gone["Days open"]) == ("2030-08-01", 31)
    out = capsys.readouterr().out
    assert "1 finding (1 new, 1 resolved), limited to: 1 of 7 checks\n" in out
    assert "New:\n  Medium    test-late: made for a test\n" in out
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
    acceptance = {"pattern": "users/test-*", "until": "", "reason": "they are ours"}
    assert rows["users/test-robot"]["acceptance"] == acceptance
    Path("accept.txt").write_text("users/test-* until 2020-01-31 # they are ours\n")
    capsys.readouterr()
    assert audit("--check", "users") == 1
    words = "made for a test (acceptance expired, until 2020-01-31: they are ours)"
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Acceptance ended: Medium test-bot: {words}" in shown


def test_users_that_cannot_be_listed_are_not_checked_and_nothing_is_resolved(
    staffed: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    audit("--check", "users")
    before = in_state()
    staffed.layer.faults = [Fault("AccessDenied", "iam", "ListUsers")]
    capsys.readouterr()
    assert audit("--check", "users") == 3
    # root is evaluated all the same, and the check has nothing to say of it
    assert [
        (row["User"], row["Result"], row["Status"], row["ID"])
        for row in read_sheet("x.xls", "Users")
    ] == [
        ("<users>", "AccessDenied: iam ListUsers", "NOT CHECKED", "users/<users>/not-checked"),
        ("", "No user among 1", "OK", "users/<nothing>"),
    ]
    shown = "Users: AccessDenied: iam ListUsers (needs iam:ListUsers): <users>"
    assert ("NOT CHECKED", shown) in summary_section("x.xls", "Not checked")
    assert in_json()["users/<users>/not-checked"]["status"] == "NOT CHECKED"
    assert "0 findings (0 new, 0 resolved), 1 NOT CHECKED" in capsys.readouterr().out
    assert in_state() == before


# --- a kind of target of its own -----------------------------------------------------------------


def key_pairs(aws: Account) -> Iterator[str]:
    """Every key pair, with its region in front."""
    for region in regions(aws):
        for pair in aws.fetch("ec2", "DescribeKeyPairs", "KeyPairs", region):
            yield f"{region}/{pair['KeyName']}"


@pytest.fixture
def key_pair_check(cloud: Cloud) -> Iterator[Cloud]:
    """A check over key pairs: a pair that was made for a test is a finding."""
    with more_checks():

        @check(
            "Key pairs",
            targets=TargetKind("key pairs", key_pairs, regional=True),
            columns=("Key pair", "Region"),
            description="Key pairs of instances.",
            docs="https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-key-pairs.html",
            empty_message="No bad one among {targets:,} key pairs",
        )
        def check_key_pairs(aws: Account, target: str) -> Rows:
            region, _, name = target.partition("/")
            if name.startswith("test-"):
                cells: dict[str, Any] = {"Key pair": name, "Region": region}
                yield Row(target, "", cells, Message("is bad"), "Low")
            return None

        yield cloud


def make_key_pair(cloud: Cloud, region: str, name: str) -> None:
    cloud.client("ec2", region).create_key_pair(KeyName=name)


def key_pair_rows(*options: str) -> dict[str, tuple[str, str]]:
    """Status and result by ID, of a run over the key pairs."""
    files = ["--output", "x.xls", "--json", "x.json", "--state", "state.json"]
    main([*files, "--check", "key-pairs", *options])
    (account,) = read_accounts("x.json").values()
    (result,) = account["results"]
    return {row["id"]: (row["status"], row["result"]) for row in result["rows"]}


def test_a_kind_of_target_is_listed_and_limited_by_region(key_pair_check: Cloud) -> None:
    make_key_pair(key_pair_check, "eu-west-1", "fine")
    nothing = {"key-pairs/<nothing>": ("OK", "No bad one among 1 key pairs")}
    assert key_pair_rows() == nothing
    for region in ("eu-west-1", "us-east-1"):
        make_key_pair(key_pair_check, region, "test-1")
    both = {f"key-pairs/{region}/test-1": BAD for region in ("eu-west-1", "us-east-1")}
    assert key_pair_rows() == both
    assert key_pair_rows("--region", "us-east-1") == {"key-pairs/us-east-1/test-1": BAD}


BAD = ("FINDING", "Is bad")


def test_targets_that_cannot_be_listed_are_not_checked(key_pair_check: Cloud) -> None:
    make_key_pair(key_pair_check, "eu-west-1", "test-1")
    key_pair_check.layer.faults = [
        Fault("UnauthorizedOperation", "ec2", "DescribeKeyPairs", "us-west-2")
    ]
    denied = ("NOT CHECKED", "UnauthorizedOperation: ec2 DescribeKeyPairs")
    found = {"key-pairs/eu-west-1/test-1": BAD, "key-pairs/<key pairs>/not-checked": denied}
    assert key_pair_rows() == found


def test_a_target_that_is_gone_is_resolved(key_pair_check: Cloud, clock: Clock) -> None:
    make_key_pair(key_pair_check, "eu-west-1", "test-1")
    clock.set("2030-08-01")
    assert key_pair_rows() == {"key-pairs/eu-west-1/test-1": BAD}
    clock.set("2030-09-01")
    key_pair_check.client("ec2", "eu-west-1").delete_key_pair(KeyName="test-1")
    assert key_pair_rows() == {"key-pairs/<nothing>": ("OK", "No bad one among 0 key pairs")}
    (gone,) = read_sheet("x.xls", "Resolved")
    assert gone["Finding"] == "key-pairs/eu-west-1/test-1"


# --- what cannot be declared ---------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "targets": USER_TARGETS,
    "columns": ("User", "Path"),
    "description": "Users.",
    "docs": "https://docs.aws.amazon.com/",
    "empty_message": "No user among {targets:,}, {evaluated} evaluated",
}


def no_rows(aws: Account, target: str) -> Rows:
    yield from ()
    return None


TITLE = "the title of a sheet has 1 to 31 characters, none of / \\ ? * [ ] : '"
TAKEN = "another sheet has this title"


@pytest.mark.parametrize(
    ("title", "fields", "why"),
    [
        pytest.param("", {}, TITLE, id="no title"),
        pytest.param("x" * 32, {}, TITLE, id="a long title"),
        *(pytest.param(f"a{mark}b", {}, TITLE, id=f"a title with {mark}") for mark in r"/\?*[]:'"),
        *(
            pytest.param(title, {}, TAKEN, id=f"a second {title}")
            for title in ("mfa", "EC2-CLASSIC", "Summary", "Accounts", "Controls", "resolved")
        ),
        pytest.param("Users", {"columns": ()}, "it needs at least one column", id="no column"),
        pytest.param(
            "Users",
            {"columns": ("User", "Result", "ID")},
            "every sheet has a column ID and Result",
            id="columns that every sheet has",
        ),
        pytest.param(
            "Users", {"name_columns": ("Name",)}, "no column Name", id="a name that is no column"
        ),
        pytest.param(
            "Users", {"console_links": {"Name": "x"}}, "no column Name", id="a link on no column"
        ),
        pytest.param(
            "Users",
            {"console_links": {"User": "{Region}/{User}"}},
            "no column Region",
            id="a link with what is no column",
        ),
        pytest.param(
            "Users",
            {"empty_message": "No user in {regions:,}"},
            "empty_message may use {targets} and {evaluated} only",
            id="a sentence with something else",
        ),
        pytest.param(
            "Users",
            {"empty_message": "No user among {}"},
            "empty_message may use {targets} and {evaluated} only",
            id="a sentence with a number of no name",
        ),
        pytest.param(
            "Users",
            {"controls": {"IAM.3": CONTROL}},
            "another check decides one of the controls",
            id="a control of another check",
        ),
        pytest.param(
            "Users",
            {"controls": {"OWN.1": CONTROL._replace(severity="Severe")}},
            "the severity of a control is one of SEVERITIES",
            id="a severity that there is not",
        ),
    ],
)
def test_a_declaration_that_would_fail_later_is_refused(
    title: str, fields: dict[str, Any], why: str
) -> None:
    with more_checks():
        with pytest.raises(ValueError, match=f"^{re.escape(f'@check({title!r}): {why}')}$"):
            check(title, **{**GOOD, **fields})(no_rows)
        assert security_check.CHECKS == CHECKS


@pytest.mark.parametrize("title", ["x", "x" * 31, "Users, groups & roles", "Größe"])
def test_what_is_good_is_declared(title: str) -> None:
    with more_checks():
        assert check(title, **GOOD)(no_rows) is no_rows
        assert security_check.CHECKS[-1].name == title.lower().replace(" ", "-")


@pytest.mark.survives_bugs
def test_a_control_that_was_not_declared_is_an_error_of_the_target(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(aws: Account, user: str) -> Rows:
        failed = (ControlFinding("IAM.9", user),)
        yield Row(user, "", {"User": user}, Message("is bad"), "Low", control_findings=failed)
        return None

    with more_checks():
        check("Users", **GOOD)(wrong)
        assert main(["--check", "users", "--json", "x.json", "--output", "x.xls"]) == 3
        results = [row["result"] for row in in_json().values()]
    assert "InternalError: ValueError: Users does not declare IAM.9" in results
