"""A whole organization: every account side by side, a workbook each, one overview."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cloud import DEFAULT_ACCOUNT_ID, Cloud, Fault
from conftest import BUCKET, Clock, OrgRun, assert_refused, objects, patient
from example import CLOSED, MEMBERS, SOEHNE, SUSPENDED, TOKYO, Organization
from python_calamine import CalamineWorkbook
from reading import (
    all_texts,
    leads_to,
    open_book,
    read_accounts,
    read_cells,
    read_sheet,
    rows_by_id,
    sheet_names,
    summary_cells,
    summary_table,
)

import security_check
from security_check import OK, SEVERITIES, AwsError, main

FILES = ["--json", "o.json", "--csv", ".", "--output", "o.xls"]


def accounts(path: str | Path = "o.json") -> dict[str, dict[str, Any]]:
    """What the JSON says of each account; an error is in words, which are shorter to compare."""
    found = read_accounts(path)
    for account in found.values():
        account["error"] = str(AwsError(**account["error"])) if account["error"] else ""
    return found


def assumed_roles(cloud: Cloud) -> list[str]:
    """The roles that were asked for, as ARN, in the order of the accounts."""
    texts = (call.text for call in cloud.layer.calls if call.operation == "AssumeRole")
    return sorted(re.findall(r"RoleArn=([^&]+)", " ".join(texts)))


# --- what comes out ------------------------------------------------------------------------


class TestFullOrganization:
    """Of one run."""

    def test_the_overview_is_the_sum_of_its_accounts_and_they_are_as_alone(
        self, full_org_run: OrgRun
    ) -> None:
        run, book = full_org_run, open_book(full_org_run.overview)
        assert run.code == 3
        found = accounts(run.folder / "o.json")
        lines = {line["Account"]: line for line in read_sheet(book, "Accounts")}
        assert [*found] == [*lines], "the JSON has another order, which is the worst first"
        assert lines.keys() == run.organization.names.keys()
        for number in run.organization.audited:
            (alone,) = accounts(run.alone(number)).values()
            assert rows_by_id(found[number]) == rows_by_id(alone)
            count = Counter(
                row["severity"] for row in rows_by_id(alone).values() if row["status"] == "FINDING"
            )
            assert [lines[number][severity] or 0 for severity in SEVERITIES] == [
                count[severity] for severity in SEVERITIES
            ]
        (totals,) = (line for line in summary_table(book, "Check") if line["Check"] == "All")
        for severity in SEVERITIES:
            assert totals[severity] == sum(line[severity] or 0 for line in lines.values())
        for check in security_check.CHECKS:
            sheet = read_sheet(book, check.title)
            shown = [line["ID"] for line in sheet if line["ID"]]
            wanted = {
                f"{number}/{id}"
                for number in run.organization.audited
                for id, row in rows_by_id(found[number]).items()
                if row["status"] != OK and id.startswith(f"{check.name}/")
            }
            assert (set(shown), len(shown)) == (wanted, len(wanted))
            grades = [SEVERITIES.index(line["Severity"] or "Low") for line in sheet]
            assert grades == sorted(grades)

    def test_nothing_of_one_account_is_in_the_workbook_of_another(
        self, full_org_run: OrgRun
    ) -> None:
        audited = full_org_run.organization.audited
        buckets = {m.number: [name for name, *_ in m.buckets] for m in MEMBERS}
        for number in audited:
            (path,) = full_org_run.overview.parent.glob(f"security_check_{number}_*.xls")
            text = "\n".join(
                cell for sheet in all_texts(path).values() for row in sheet for cell in row
            )
            others = {*full_org_run.organization.names} - {number}
            assert not [other for other in others if other in text and number != DEFAULT_ACCOUNT_ID]
            for other in others & buckets.keys():
                assert not [name for name in buckets[other] if name in text]
        assert {call.account for call in full_org_run.calls} == {*audited}

    def test_an_account_that_cannot_be_opened_is_never_just_missing(
        self, full_org_run: OrgRun
    ) -> None:
        found = accounts(full_org_run.folder / "o.json")
        first, *others = read_sheet(full_org_run.overview, "Accounts")
        why = f"AccessDenied: sts AssumeRole arn:aws:iam::{CLOSED}:role/security-check"
        assert (first["Account"], first["Status"]) == (CLOSED, "NOT CHECKED")
        assert first["Result"].startswith(f"{why} (needs sts:AssumeRole")
        assert found[CLOSED]["error"] == why
        (gone,) = (line for line in others if line["Account"] == SUSPENDED)
        assert (gone["Status"], gone["Result"]) == ("SUSPENDED", "SUSPENDED: cannot be audited")
        assert found[SUSPENDED]["error"] == ""
        lines = full_org_run.out.splitlines()
        assert lines[2] == "10 audited, 1 NOT CHECKED, 1 SUSPENDED"
        assert lines[-1] == str(full_org_run.overview.resolve())

    def test_links_lead_to_the_workbooks_and_to_the_rows(self, full_org_run: OrgRun) -> None:
        book = open_book(full_org_run.overview)
        linked = [cell.link for row in read_cells(book, "Accounts") for cell in row.values()]
        there = {path.name for path in full_org_run.overview.parent.iterdir()} - {"o.xls"}
        assert {link for link in linked if link} == there
        assert len(there) == len(full_org_run.organization.audited)
        rows_linked = 0
        for line in summary_cells(book):
            for label, *_, link in [line] if line[-1].value == "show" else ():
                title, row = leads_to(book, link.link)
                if not row:  # the sheet Accounts
                    continue
                rows_linked += 1
                assert label.value in (row["Severity"], row["Status"])
                texts = [str(cell.value) for cell in line]
                assert title != "Accounts" or any(row["Account"] in text for text in texts)
        assert rows_linked == 12  # the ten worst, and two of the gaps
        assert CalamineWorkbook.from_path(str(full_org_run.overview)).sheet_names == sheet_names(
            book
        )


def test_standard_output_is_one_document_and_every_table_is_a_file(
    cloud: Cloud, small_org: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tables").mkdir()
    assert main(["--organization", "--json", "-", "--csv", "tables", "--output", "o.xls"]) == 3
    Path("o.json").write_text(capsys.readouterr().out)
    found = accounts()
    assert found.keys() == small_org.names.keys()
    tables = {
        path.name.removeprefix("overview-").removesuffix(".csv"): [
            line.get("ID") for line in csv.DictReader(path.open(encoding="utf-8-sig"))
        ]
        for path in Path("tables").iterdir()
    }
    checks = {check.name for check in security_check.CHECKS}
    assert tables.keys() == checks | {"accounts", "controls"}
    for name in checks:
        assert sorted(map(str, tables[name])) == sorted(
            f"{number}/{row['id']}"
            for number in small_org.audited
            for result in found[number]["results"]
            for row in result["rows"]
            if result["check"] == name and row["status"] != "OK"
        )


def test_the_terminal_has_80_columns_and_twenty_accounts(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {DEFAULT_ACCOUNT_ID: "me", **{f"{n:012}": "支店" * 20 for n in range(1, 26)}}
    cloud.organize(names)
    cloud.layer.closed = {f"{n:012}" for n in range(4, 26)}  # to be audited takes time
    main(["--organization", "--check", "ec2-classic"])
    lines = capsys.readouterr().out.splitlines()
    table = lines[4 : lines.index("", 4)]
    assert len([line for line in table if line[:12] in names]) == 20
    assert "and 6 more accounts" in table
    assert max(len(line) + sum(char in "支店" for char in line) for line in table) <= 80


# --- which accounts -------------------------------------------------------------------------


@pytest.mark.parametrize("states", [("State",), ("Status",), ("State", "Status")], ids=str)
def test_states_by_their_new_and_their_old_name(
    cloud: Cloud, small_org: Organization, states: tuple[str, ...]
) -> None:
    cloud.layer.states = states
    cloud.layer.pages = lambda found: [[], found[:3], [], found[1:]]  # empty pages, and twice
    cloud.set_state(TOKYO, "SUSPENDED")
    main(["--organization", "--check", "ec2-classic", *FILES])
    assert accounts().keys() == small_org.names.keys()
    assert accounts()[TOKYO]["account_status"] == "SUSPENDED"
    assert not [role for role in assumed_roles(cloud) if TOKYO in role]


@pytest.mark.parametrize(
    ("arguments", "numbers", "several", "code"),
    [
        pytest.param(["--account", SOEHNE], [SOEHNE], False, 0, id="one account alone"),
        pytest.param(
            ["--account", DEFAULT_ACCOUNT_ID], [DEFAULT_ACCOUNT_ID], False, 0, id="our own"
        ),
        pytest.param(["--account", TOKYO, "--account", SOEHNE], [TOKYO, SOEHNE], True, 0, id="two"),
        pytest.param(["--account", SOEHNE] * 2, [SOEHNE], False, 0, id="one named twice"),
        pytest.param(["--organization", "--account", SOEHNE], [SOEHNE], True, 0, id="of the list"),
    ],
)
def test_accounts_that_are_named(
    cloud: Cloud,
    small_org: Organization,
    arguments: list[str],
    numbers: list[str],
    several: bool,
    code: int,
) -> None:
    assert main([*arguments, "--check", "ec2-classic", *FILES]) == code
    assert sorted(accounts()) == sorted(numbers)
    role = "arn:aws:iam::{}:role/security-check"
    foreign = sorted(number for number in numbers if number != DEFAULT_ACCOUNT_ID)
    assert assumed_roles(cloud) == [role.format(number) for number in foreign]
    listed = cloud.layer.count()["organizations:ListAccounts"]
    assert bool(listed) is ("--organization" in arguments)
    assert ("Accounts" in sheet_names("o.xls")) is several


def test_an_account_that_is_not_in_the_organization(cloud: Cloud, small_org: Organization) -> None:
    assert main(["--organization", "--account", "123123123123", *FILES]) == 3
    assert accounts()["123123123123"]["error"] == "NotListed: organizations ListAccounts"


def test_the_session_has_the_name_of_the_caller_and_a_role_may_have_a_path(
    cloud: Cloud, small_org: Organization
) -> None:
    cloud.layer.roles = {"audit/reader"}
    main(["--account", SOEHNE, "--role", "audit/reader", "--check", "mfa"])
    (call,) = (call for call in cloud.layer.calls if call.operation == "AssumeRole")
    assert ":role/audit/reader&RoleSessionName=security-check-" in call.text
    assert assumed_roles(cloud) == [f"arn:aws:iam::{SOEHNE}:role/audit/reader"]


def test_a_single_account_that_cannot_be_opened(
    cloud: Cloud, small_org: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--account", CLOSED]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot open the account: AccessDenied: sts AssumeRole" in line
    assert not [*Path().glob("*.xls")]


def test_a_list_that_may_not_be_read_is_one_line(
    cloud: Cloud, small_org: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.layer.faults = [Fault("AccessDeniedException", "organizations")]
    assert main(["--organization"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "AccessDeniedException: organizations ListAccounts (needs organizations:" in line
    assert not [*Path().glob("*.xls")]


def test_a_delegated_administrator_may_run_it(
    cloud: Cloud, small_org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cloud.credentials(SOEHNE).items():
        monkeypatch.setenv(name, value)
    assert main(["--organization", *FILES]) == 2
    cloud.layer.administrators = {SOEHNE}
    assert main(["--organization", *FILES]) == 3
    assert accounts().keys() == small_org.names.keys()
    asked = [DEFAULT_ACCOUNT_ID, TOKYO, CLOSED]  # the administrator itself assumes no role
    assert assumed_roles(cloud) == [f"arn:aws:iam::{one}:role/security-check" for one in asked]


def test_a_profile_lists_and_assumes_but_is_not_who_audits(
    cloud: Cloud, small_org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = cloud.credentials(DEFAULT_ACCOUNT_ID)
    for name in keys:
        monkeypatch.delenv(name)
    lines = [f"{name.lower()} = {value}" for name, value in keys.items()]
    Path("config").write_text("\n".join(["[profile audit]", "region = eu-west-1", *lines]))
    monkeypatch.setenv("AWS_CONFIG_FILE", "config")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of nobody in particular")
    assert main(["--organization", "--profile", "audit", *FILES]) == 3
    assert accounts().keys() == small_org.names.keys()
    assert {call.account for call in cloud.layer.calls} == {*small_org.audited}
    assert {call.region for call in cloud.layer.calls if call.service == "sts"} == {"eu-west-1"}


def test_profiles_are_a_run_over_several_accounts(
    cloud: Cloud, small_org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    lines = []
    for name, number in (("a", SOEHNE), ("b", TOKYO), ("same", SOEHNE)):
        keys = cloud.credentials(number)
        lines += [f"[profile {name}]", *(f"{key.lower()} = {keys[key]}" for key in keys)]
    Path("config").write_text("\n".join([*lines, "[profile none]\n"]))
    monkeypatch.setenv("AWS_CONFIG_FILE", "config")
    given = [f"--profile={name}" for name in ("a", "none", "b", "same")]
    assert main([*given, *FILES]) == 3
    found = accounts()
    assert found.keys() == {SOEHNE, "none", TOKYO}
    assert found["none"]["error"].startswith("CannotRun: no AWS credentials found")
    remediations = [row["remediation"] for row in rows_by_id(found[TOKYO]).values()]
    commands = [one["command"] for one in remediations if one["command"]]
    assert commands
    assert all(command.endswith(" --profile b") for command in commands)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--account", "123"],
        ["--account", "12345678901x"],
        ["--account", "١٢٣٤٥٦٧٨٩٠١٢"],
        ["--role", "a b"],
        ["--role", ""],
        ["--organization", "--profile", "a", "--profile", "b"],
        ["--account", SOEHNE, "--profile", "a", "--profile", "b"],
    ],
    ids=" ".join,
)
def test_bad_arguments_are_one_line_before_any_call(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert_refused(cloud, capsys, *arguments)


def test_the_list_holds_who_can_be_audited(
    cloud: Cloud, org_with_bucket: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.set_state(SOEHNE, "SUSPENDED")
    assert main(["--organization", "--list", "-"]) == 0
    assert capsys.readouterr().out.split() == [DEFAULT_ACCOUNT_ID, TOKYO, CLOSED]
    assert main(["--organization", "--list", f"s3://{BUCKET}/accounts.csv"]) == 0
    told = objects(cloud.client("s3"))["accounts.csv"].decode().split()
    assert told == [DEFAULT_ACCOUNT_ID, TOKYO, CLOSED]
    assert not [call for call in cloud.layer.calls if call.operation == "AssumeRole"]
    cloud.layer.faults = [Fault("AccessDeniedException", "organizations")]
    assert main(["--organization", "--list", "accounts.csv"]) == 2
    assert not Path("accounts.csv").exists()


# --- what goes wrong in one account ------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault("AccessDenied", account=SOEHNE, after=10, status=403),
        Fault("ExpiredToken", "iam", "ListAccessKeys", account=SOEHNE),
        Fault("rubbish", "iam", "ListUsers", account=SOEHNE),
    ],
    ids=["denied after ten calls", "credentials expire", "nonsense"],
)
def test_what_goes_wrong_in_one_account_costs_that_account_only(
    cloud: Cloud, small_org: Organization, fault: Fault
) -> None:
    two = ["--account", SOEHNE, "--account", TOKYO, *FILES]
    main(two)
    before = rows_by_id(accounts()[TOKYO])
    cloud.layer.faults = [fault]
    assert main(two) == 3
    after = accounts()
    assert rows_by_id(after[TOKYO]) == before
    assert "NOT CHECKED" in {row["status"] for row in rows_by_id(after[SOEHNE]).values()}


def test_a_list_that_aws_fails_to_give_costs_its_checks_only(
    cloud: Cloud, small_org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001
    )
    cloud.layer.faults = [Fault("InternalFailure", "iam", "ListUsers", account=SOEHNE, status=500)]
    assert main(["--account", SOEHNE, "--account", TOKYO, *FILES]) == 3
    gaps = {
        (number, id)
        for number, account in accounts().items()
        for id, row in rows_by_id(account).items()
        if row["status"] == "NOT CHECKED"
    }
    assert gaps == {
        (SOEHNE, "access-keys/<users>/not-checked"),
        (SOEHNE, "mfa/<users>/not-checked"),
    }


def test_credentials_that_expire_while_accounts_are_opened(
    cloud: Cloud, small_org: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    """One account is opened, whichever is the first; the others could be, but for this."""
    cloud.layer.closed.clear()
    cloud.layer.faults = [Fault("ExpiredToken", "sts", "AssumeRole", after=1, status=403)]
    assert main(["--organization", *FILES]) == 3
    errors = [one["error"] for one in accounts().values() if one["error"]]
    assert len(errors) == 2
    assert all(error.startswith("ExpiredToken: sts AssumeRole arn:aws:iam::") for error in errors)
    assert "2 audited, 2 NOT CHECKED" in capsys.readouterr().out


@pytest.mark.survives_bugs
def test_a_bug_in_one_account_costs_that_account_only(
    cloud: Cloud, small_org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = security_check.diff_with_state

    def diff_with_state(*given: Any) -> Any:
        if any(row.cells.get("User") == "guenther" for one in given[0] for row in one.rows):
            raise KeyError("Surprise")
        return inner(*given)

    monkeypatch.setattr(security_check, "diff_with_state", diff_with_state)
    assert main(["--account", SOEHNE, "--account", TOKYO, *FILES]) == 3
    found = accounts()
    assert found[SOEHNE]["error"] == "InternalError: KeyError"
    assert rows_by_id(found[TOKYO])


# --- every month ---------------------------------------------------------------------------------


def state_of(number: str) -> Any:
    """What the state remembers of an account."""
    return json.loads(Path("state.json").read_text())["accounts"][number]


def test_months_of_an_organization(
    cloud: Cloud, small_org: Organization, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--organization", "--state", "state.json", *FILES]
    clock.set("2030-08-01")
    main(run)
    accounts_in_state = json.loads(Path("state.json").read_text())["accounts"]
    assert accounts_in_state.keys() == {*small_org.audited}
    assert not any(row["change"] for row in rows_by_id(accounts()[TOKYO]).values())
    before = state_of(SOEHNE)
    capsys.readouterr()
    cloud.client("iam", account=TOKYO).create_user(UserName="new")
    cloud.layer.closed |= {SOEHNE}
    clock.set("2030-09-01")
    main(run)
    assert state_of(SOEHNE) == before
    found = accounts()
    news = {
        (number, id): row["change"]
        for number in found
        for id, row in rows_by_id(found[number]).items()
        if row["change"]
    }
    assert len(found[SOEHNE]["history"]) == 1  # of an account that could not be opened
    assert news == {(TOKYO, "mfa/new"): "NEW"}
    assert not any(account["resolved"] for account in found.values())
    assert "  Medium    new: has no MFA device, and no console password" in capsys.readouterr().out
    cloud.layer.closed -= {SOEHNE}
    cloud.client("iam", account=TOKYO).delete_user(UserName="new")
    clock.set("2030-10-01")
    main(run)
    found = accounts()
    assert [*found[TOKYO]["resolved"]] == ["mfa/new"]
    assert not any(row["change"] for row in rows_by_id(found[SOEHNE]).values())
    assert [(line["Account"], line["Finding"]) for line in read_sheet("o.xls", "Resolved")] == [
        (TOKYO, f"{TOKYO}/mfa/new")
    ]


def test_no_run_of_the_first_day_marks_anything_new(
    cloud: Cloud, small_org: Organization, clock: Clock
) -> None:
    clock.set("2030-08-01")
    for _ in range(2):
        main(["--account", TOKYO, "--check", "mfa", "--state", "state.json", *FILES])
        assert {row["change"] for row in rows_by_id(accounts()[TOKYO]).values()} == {""}


def test_quiet_is_silent_where_nothing_is_new(
    cloud: Cloud, small_org: Organization, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--account", SOEHNE, "--account", TOKYO, "--quiet", "--state", "state.json"]
    clock.set("2030-08-01")
    assert main(run) == 1
    assert "Worst:" in capsys.readouterr().out  # there is nothing to compare with
    clock.set("2030-09-01")
    assert main(run) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_an_account_that_left_the_organization_is_told_once_and_keeps_its_findings(
    cloud: Cloud, small_org: Organization, clock: Clock
) -> None:
    run = ["--organization", "--check", "mfa", "access-keys", "--state", "state.json", *FILES]
    clock.set("2030-08-01")
    main(run)
    before = state_of(TOKYO)
    cloud.layer.pages = lambda found: [[one for one in found if one["Id"] != TOKYO]]
    cloud.layer.closed.clear()
    told = []
    for month in ("2030-09-01", "2030-10-01"):
        clock.set(month)
        code = main(run)
        assert (state_of(TOKYO)["account_status"], before["account_status"]) == ("LEFT", "ACTIVE")
        assert state_of(TOKYO)["findings"] == before["findings"]
        told.append((code, accounts()[TOKYO]["error"]))
        (nothing,) = read_sheet("o.xls", "Resolved")
        words = [text for text in nothing.values() if text]
        assert words == ["Nothing was resolved since last time"]
    assert told == [(3, f"AccountLeft: its {len(before['findings'])} findings may remain"), (1, "")]


def test_decisions_for_all_accounts_and_for_one(
    cloud: Cloud, small_org: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("accept.txt").write_text(
        f"{SOEHNE}/mfa/deploy # a robot there\n"
        "cloudtrail/* # another tool records\n"
        f"{TOKYO}/mfa/nobody # left\n"
    )
    main(["--organization", "--accept", "accept.txt", *FILES])
    found = accounts()
    assert rows_by_id(found[SOEHNE])["mfa/deploy"]["status"] == "ACCEPTED"
    assert rows_by_id(found[TOKYO])["mfa/deploy"]["status"] == "FINDING"
    assert rows_by_id(found[TOKYO])["cloudtrail/eu-west-1"]["status"] == "ACCEPTED"
    cloud.layer.closed.clear()
    capsys.readouterr()
    main(["--organization", "--accept", "accept.txt"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"unused acceptance: {TOKYO}/mfa/nobody matches no finding")


# --- partitions, interruptions -----------------------------------------------------------------


def test_the_partition_is_the_callers(
    cloud: Cloud, small_org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = security_check.connect

    def connect(*given: Any) -> Any:
        caller = inner(*given)
        caller.arn = f"arn:aws-cn:sts::{DEFAULT_ACCOUNT_ID}:assumed-role/admin/ümit@example.com"
        return caller

    monkeypatch.setattr(security_check, "connect", connect)
    main(["--account", SOEHNE])
    (call,) = (call for call in cloud.layer.calls if call.operation == "AssumeRole")
    assert f"RoleArn=arn:aws-cn:iam::{SOEHNE}:role/security-check&" in call.text
    assert "RoleSessionName=security-check--mit@example.com" in call.text


@pytest.mark.posix
def test_interrupted_in_the_middle_it_keeps_what_is_done(
    cloud: Cloud,
    org_with_bucket: Organization,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Its progress, which it shows on a terminal, says when the first account is done."""
    cloud.layer.faults = [Fault("hang", "iam", account=TOKYO)]
    given = ["--account", TOKYO, "--account", SOEHNE, "--csv", f"s3://{BUCKET}/{{account}}"]
    env = {"PATH": os.environ["PATH"], **cloud.environment}
    env |= patient(tmp_path_factory.mktemp("patient"))
    terminal, its_end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(security_check.__file__), *given],
        env=env,
        stderr=its_end,
        cwd=tmp_path,
    )
    os.close(its_end)
    said = b""
    while b"1 of 2 accounts" not in said:
        said += os.read(terminal, 1000)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(OSError):  # how a terminal ends on Linux
        while more := os.read(terminal, 1000):
            said += more
    os.close(terminal)
    assert process.wait(timeout=300) == 128 + signal.SIGTERM
    last = said.decode().splitlines()[-1]
    assert f"interrupted by SIGTERM: security_check_{SOEHNE}_" in last
    assert re.search(r" and \d+ more written$", last)  # a workbook and its tables, no overview
    assert objects(cloud.client("s3")).keys() >= {f"{SOEHNE}/{SOEHNE}-s3-acls.csv"}
    (done,) = tmp_path.iterdir()
    assert done.match(f"security_check_{SOEHNE}_*.xls")
    assert sheet_names(done)[0] == "Summary"
