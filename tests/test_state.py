"""Every month: what is new, resolved and accepted; four months on one account."""

from __future__ import annotations

import configparser
import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cloud import Cloud, Fault
from conftest import Clock
from making import acceptance, check_result, finding, fine, known, not_checked, seen
from reading import NUMBER, open_book, read_accounts, read_sheet, rows_by_id, sheet_names
from readme import block, cron_command

import security_check
from security_check import (
    Acceptance,
    AuditInput,
    CannotRun,
    LocalFile,
    Row,
    StateChange,
    account_state,
    apply_acceptances,
    lock_name,
    main,
    parse_accept_file,
    read_state_file,
    write_state_file,
)


class Line(NamedTuple):
    """A row of a sheet."""

    status: str
    first_seen: str
    result: str


class ResolvedRow(NamedTuple):
    """A row of the sheet Resolved."""

    status: str
    id: str
    result: str
    first_seen: str
    days_open: Any


@dataclass(frozen=True)
class Month:
    """The output of one month's run."""

    code: int
    out: str
    book: Any

    def rows(self, title: str) -> dict[str, Line]:
        """The rows that are not OK, by ID."""
        return {
            row["ID"].split("/", 1)[1]: Line(row["Status"], row["First seen"], row["Result"])
            for row in read_sheet(self.book, title)
            if row["Status"] != "OK"
        }

    def resolved(self) -> list[ResolvedRow]:
        columns = ("Status", "Finding", "Result", "First seen", "Days open")
        rows = read_sheet(self.book, "Resolved")
        found = [ResolvedRow(*(row[name] for name in columns)) for row in rows]
        assert found  # also where there is nothing to list
        text = "Nothing was resolved since last time"  # in the first column
        nothing = next(iter(rows[0].values())) == text and not any(found[0])
        return [] if nothing else found


RunOn = Callable[..., Month]


@pytest.fixture
def run_on(cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]) -> RunOn:
    """Runs the script on a day, with the state and the accept file of the folder."""
    Path("accept.txt").write_text("")
    cloud.layer.summary = {"AccountMFAEnabled": 1, "AccountAccessKeysPresent": 0}

    def on(day: str, *arguments: str) -> Month:
        clock.set(day)
        given = ["--state", "state.json", "--accept", "accept.txt", "--output", f"{day}.xls"]
        code = main([*given, *arguments])
        return Month(code, capsys.readouterr().out, open_book(f"{day}.xls"))

    return on


def open_port(cloud: Cloud, region: str, port: int) -> str:
    ec2 = cloud.client("ec2", region)
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    name = f"open-{port}"
    group: str = ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group, IpProtocol="tcp", FromPort=port, ToPort=port, CidrIp="0.0.0.0/0"
    )
    return group


def is_open(service: str) -> str:
    return f"Lets the whole Internet reach {service}; no interface has it now"


NO_MFA = "Has no MFA device, and no console password"


@pytest.mark.posix
def test_four_months_on_one_account(cloud: Cloud, run_on: RunOn) -> None:
    checks = ("--check", "security-groups", "--check", "mfa")
    west, east = open_port(cloud, "eu-west-1", 22), open_port(cloud, "us-east-1", 8443)
    ssh, https = f"eu-west-1/{west}/TCP/22", f"us-east-1/{east}/TCP/8443"
    cloud.client("iam").create_user(UserName="alice")

    # August: there is nothing to compare with, so nothing is new and nothing resolved.
    august = run_on("2030-08-01", *checks)
    assert august.code == 1
    assert august.rows("Security groups") == {
        ssh: ("FINDING", "2030-08-01", is_open("SSH (22)")),
        https: ("FINDING", "2030-08-01", is_open("TCP 8443")),
    }
    assert august.rows("MFA") == {"alice": ("FINDING", "2030-08-01", NO_MFA)}
    assert august.resolved() == []

    # September: one is accepted until the end of October, one accepted for good; bob is new.
    Path("accept.txt").write_text(
        f"security-groups/{ssh} until 2030-10-31 # the bastion goes in October\n"
        "mfa/ali* # a robot\n"
    )
    cloud.client("iam").create_user(UserName="bob")
    september = run_on("2030-09-01", *checks)
    assert september.code == 1
    assert september.rows("Security groups") == {
        ssh: (
            "ACCEPTED",
            "2030-08-01",
            f"{is_open('SSH (22)')} (accepted until 2030-10-31: the bastion goes in October)",
        ),
        https: ("FINDING", "2030-08-01", is_open("TCP 8443")),
    }
    assert september.rows("MFA") == {
        "alice": ("ACCEPTED", "2030-08-01", f"{NO_MFA} (accepted a robot)"),
        "bob": ("FINDING", "2030-09-01", f"NEW: {NO_MFA}"),
    }
    assert "  Medium    bob: has no MFA device, and no console password\n" in september.out
    assert "alice" not in september.out

    # October: us-east-1 is denied, so nothing is known of its open port; bob is deleted.
    cloud.client("iam").delete_user(UserName="bob")
    cloud.layer.faults = [Fault("UnauthorizedOperation", "ec2", "*", "us-east-1")]
    october = run_on("2030-10-01", *checks, "--region", "eu-west-1", "--region", "us-east-1")
    cloud.layer.faults = []
    assert october.code == 3
    assert october.rows("Security groups") == {
        ssh: september.rows("Security groups")[ssh],
        "us-east-1/not-checked": (
            "NOT CHECKED",
            "",
            "UnauthorizedOperation: ec2 DescribeSecurityGroups",
        ),
    }
    assert october.resolved() == [("RESOLVED", "mfa/bob", NO_MFA, "2030-09-01", 30.0)]

    # November: us-east-1 can be read again and the port is closed; the acceptance expired.
    cloud.client("ec2", "us-east-1").delete_security_group(GroupId=east)
    other = open_port(cloud, "us-east-1", 9000)
    november = run_on("2030-11-01", *checks)
    assert november.code == 1
    assert november.rows("Security groups") == {
        ssh: (
            "FINDING",
            "2030-08-01",
            f"{is_open('SSH (22)')}"
            " (acceptance expired, until 2030-10-31: the bastion goes in October)",
        ),
        f"us-east-1/{other}/TCP/9000": ("FINDING", "2030-11-01", f"NEW: {is_open('TCP 9000')}"),
    }
    assert november.resolved() == [
        ("RESOLVED", f"security-groups/{https}", is_open("TCP 8443"), "2030-08-01", 92.0)
    ]
    assert oct(Path("state.json").stat().st_mode & 0o777) == "0o600"


def test_a_finding_in_a_region_that_comes_back_keeps_its_date(cloud: Cloud, run_on: RunOn) -> None:
    group = open_port(cloud, "us-east-1", 8443)
    id = f"us-east-1/{group}/TCP/8443"
    run_on("2030-08-01")
    cloud.layer.faults = [Fault("UnauthorizedOperation", "ec2", "DescribeSecurityGroups")]
    assert run_on("2030-09-01").resolved() == []
    cloud.layer.faults = []
    back = run_on("2030-10-01").rows("Security groups")[id]
    assert back == ("FINDING", "2030-08-01", is_open("TCP 8443"))


def test_a_run_leaves_alone_what_it_did_not_look_at(cloud: Cloud, run_on: RunOn) -> None:
    group = open_port(cloud, "us-east-1", 8443)
    cloud.client("iam").create_user(UserName="alice")
    run_on("2030-08-01")
    only_keys = run_on("2030-09-01", "--check", "access-keys")
    assert sheet_names(only_keys.book) == ["Summary", "Access keys", "Controls", "Resolved"]
    other_region = run_on("2030-09-02", "--region", "eu-west-1")
    for month in (only_keys, other_region):
        assert month.resolved() == []
    later = run_on("2030-10-01")
    assert later.rows("MFA")["alice"].first_seen == "2030-08-01"
    id = f"us-east-1/{group}/TCP/8443"
    assert later.rows("Security groups")[id].first_seen == "2030-08-01"


def test_what_is_not_checked_but_accepted_does_not_make_the_exit_code(
    cloud: Cloud, run_on: RunOn
) -> None:
    cloud.layer.faults = [Fault("UnauthorizedOperation", "ec2", "DescribeInstances", "us-west-2")]
    checks = ("--check", "ec2-classic")
    assert run_on("2030-08-01", *checks).code == 3
    Path("accept.txt").write_text("ec2-classic/us-west-2/* # our SCP denies us-west-2\n")
    assert run_on("2030-08-15", *checks).code == 3  # this may be a pattern for findings only
    Path("accept.txt").write_text("ec2-classic/us-west-2/not-checked # our SCP denies us-west-2\n")
    month = run_on("2030-09-01", *checks)
    assert month.code == 0
    assert month.rows("EC2-Classic")["us-west-2/not-checked"].status == "ACCEPTED"


def test_an_acceptance_that_matches_nothing_is_named(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("accept.txt").write_text("mfa/<root_account> # known\nmfa/nobody # left\n")
    main(["--accept", "accept.txt"])
    assert capsys.readouterr().err.splitlines() == [
        "security_check.py: unused acceptance: mfa/nobody matches no finding"
    ]


# --- acceptances -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("a/b # why", acceptance(pattern="a/b", reason="why"), id="for good"),
        pytest.param(
            "a/b\t#why", acceptance(pattern="a/b", reason="why"), id="tab, no blank after #"
        ),
        pytest.param(
            "  a/* # x # y  ", acceptance(pattern="a/*", reason="x # y"), id="# in the reason"
        ),
        pytest.param(
            "a/b until 2030-12-31 # why",
            acceptance(pattern="a/b", until="2030-12-31", reason="why"),
            id="until",
        ),
    ],
)
def test_a_line_is_an_acceptance(line: str, expected: Acceptance) -> None:
    assert parse_accept_file(f"# head\n\n{line}\n", "accept.txt") == [expected]


@pytest.mark.parametrize(
    "line",
    [
        *("a/b", "a/b #", "a/b #   ", "a/b c # why", "a/b until # why", "a/b until"),
        *("a/b until 2030-02-30 # why", "a/b until 20301231 # why", "a/b until soon # why"),
    ],
)
def test_a_line_that_is_no_acceptance_is_named(line: str) -> None:
    with pytest.raises(CannotRun, match=r"^accept\.txt, line 3: "):
        parse_accept_file(f"# head\n\n{line}\n", "accept.txt")


FOUND = finding("b", message="Bad", cells={"Bucket": "x"})
DENIED = not_checked("b", error="AccessDenied: s3 GetBucketAcl", cells={"Bucket": "x"})


@pytest.mark.parametrize(
    ("row", "given", "status", "result"),
    [
        pytest.param(FOUND, {"pattern": "mfa/b"}, "ACCEPTED", "Bad (accepted r)", id="exact"),
        pytest.param(FOUND, {"pattern": "mfa/*"}, "ACCEPTED", "Bad (accepted r)", id="glob"),
        pytest.param(FOUND, {"pattern": "1/mfa/b"}, "ACCEPTED", "Bad (accepted r)", id="account"),
        pytest.param(FOUND, {"pattern": "2/mfa/b"}, "FINDING", "Bad", id="another account"),
        pytest.param(FOUND, {"pattern": "mfa/c"}, "FINDING", "Bad", id="another finding"),
        pytest.param(
            FOUND,
            {"pattern": "mfa/b", "until": "2030-01-02"},
            "ACCEPTED",
            "Bad (accepted until 2030-01-02: r)",
            id="on its last day",
        ),
        pytest.param(
            FOUND,
            {"pattern": "mfa/b", "until": "2030-01-01"},
            "FINDING",
            "Bad (acceptance expired, until 2030-01-01: r)",
            id="the day after",
        ),
        pytest.param(
            DENIED,
            {"pattern": "mfa/b/not-checked"},
            "ACCEPTED",
            "AccessDenied: s3 GetBucketAcl (accepted r)",
            id="NOT CHECKED",
        ),
        pytest.param(
            DENIED,
            {"pattern": "mfa/*"},
            "NOT CHECKED",
            "AccessDenied: s3 GetBucketAcl",
            id="NOT CHECKED, and a pattern for findings",
        ),
        pytest.param(fine("b"), {"pattern": "mfa/b"}, "OK", "Fine", id="nothing to accept"),
    ],
)
def test_acceptances_change_a_row(
    row: Row, given: dict[str, str], status: str, result: str
) -> None:
    found, acceptances = [check_result("mfa", row)], [acceptance(reason="r", **given)]
    given_to_audit = AuditInput([], acceptances, None, "2030-01-02")
    ((after,), _) = apply_acceptances(found, "1", given_to_audit)
    (shown,) = seen(after.rows)
    assert (shown.status, shown.result) == (status, result)


# --- state -------------------------------------------------------------------------------


def test_accounts_written_at_once_are_not_lost(tmp_path: Path) -> None:
    file = LocalFile(tmp_path / "state.json")
    findings = {"mfa/b": known("2030-01-01")}
    change = StateChange("2030-01-01", ["mfa"], findings, set(), {}, 0, {}, 90)
    numbers = [f"{n:012}" for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_state_file(file, {number: change}), numbers))
    accounts = read_state_file(file)
    assert {*accounts} == {*numbers}
    assert all(account_state(accounts, one, file).findings == findings for one in numbers)
    assert {one.name for one in tmp_path.iterdir()} <= {"state.json", lock_name(file.path)}


# --- the other forms ----------------------------------------------------------------------


def test_json_says_what_the_sheets_say(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.client("iam").create_user(UserName="alice")
    cloud.client("iam").create_access_key(UserName="alice")
    assert main(["--json", "-", "--state", "state.json", "--output", "x.xls"]) == 1
    Path("x.json").write_text(capsys.readouterr().out)
    rows = rows_by_id(read_accounts("x.json")[NUMBER])
    mfa = {id: row for id, row in rows.items() if id.startswith("mfa/")}
    assert {id: (row["status"], row["control"]) for id, row in mfa.items()} == {
        "mfa/<root_account>": ("FINDING", "IAM.9"),
        "mfa/alice": ("FINDING", "IAM.19"),
    }
    shown = read_sheet("x.xls", "MFA")
    assert {row["ID"]: (row["Status"], row["Control"]) for row in shown} == {
        id: (row["status"], row["control"]) for id, row in mfa.items()
    }
    (key,) = (row for id, row in rows.items() if id.startswith("access-keys/alice/"))
    assert key["cells"]["Age (days)"] == 0


def test_csv_is_safe_against_formulas(cloud: Cloud) -> None:
    ec2 = cloud.client("ec2", "eu-west-1")
    names = {}
    for name in ("=1+1", "+x", "-x", "@x"):
        group = ec2.create_security_group(GroupName=name, Description="x")["GroupId"]
        ec2.authorize_security_group_ingress(
            GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
        )
        names[f"security-groups/eu-west-1/{group}/TCP/22"] = f"'{name}"
    Path("csv").mkdir()
    main(["--csv", "csv", "--check", "security-groups"])
    with Path(f"csv/{NUMBER}-security-groups.csv").open(encoding="utf-8-sig") as file:
        assert {row["ID"]: row["Group name"] for row in csv.DictReader(file)} == names


# --- cron and several accounts --------------------------------------------------------------


def test_quiet_speaks_only_of_news_and_of_what_is_not_checked(
    cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--quiet", "--state", "state.json", "--output", "x.xls"]
    for hour in ("06", "18"):  # all day there is nothing to compare with
        clock.set(f"2030-08-01T{hour}:15:00")
        assert main(quiet) == 1
        assert "Worst:\n  Critical  root: " in capsys.readouterr().out
    clock.set("2030-08-02")
    assert main(quiet) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    cloud.layer.faults = [Fault("AccessDenied", "iam", "ListUsers")]
    assert main(quiet) == 3
    assert "2 NOT CHECKED" in capsys.readouterr().out


def test_quiet_speaks_of_an_acceptance_that_expired(cloud: Cloud, run_on: RunOn) -> None:
    line = "  Critical  root: can sign in with a password alone"
    why = "(acceptance expired, until 2030-09-30: in the safe)"
    options = ("--quiet", "--check", "mfa")
    cloud.layer.summary = {"AccountMFAEnabled": 0, "AccountAccessKeysPresent": 0}
    Path("accept.txt").write_text("mfa/<root_account> until 2030-09-30 # in the safe\n")
    assert run_on("2030-09-01", *options).out == ""
    over = run_on("2030-10-01", *options)
    assert f"Acceptance ended:\n{line}" in over.out
    assert why in " ".join(over.out.split())
    assert "New:" not in over.out
    Path("accept.txt").write_text("mfa/<root_account> until 2030-12-31 # in the safe\n")
    assert run_on("2030-11-01", *options).out == ""


def test_one_account_that_fails_does_not_stop_the_next(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "config")
    keys = "aws_access_key_id = AKIA\naws_secret_access_key = secret\n"
    Path("config").write_text(f"[profile empty]\n[profile good]\n{keys}")
    assert main(["--profile", "empty", "--profile", "good"]) == 3
    said = capsys.readouterr()
    assert said.err.startswith("security_check.py: empty: no AWS credentials found")
    assert "NOT CHECKED" in said.out
    overview, workbook = sorted(Path().glob("*.xls"), key=lambda path: "overview" not in path.name)
    assert workbook.name.startswith(f"security_check_{NUMBER}_")
    assert overview.name.startswith("security_check_overview_")


# --- as the README says --------------------------------------------------------------------

CRON = cron_command("--accept", without="--organization")
SYSTEMD = {"service": block("ini", "[Service]"), "timer": block("ini", "[Timer]")}


@pytest.mark.posix
def test_the_crontab_of_the_readme_runs_as_cron_runs_it(cloud: Cloud, tmp_path: Path) -> None:
    """An empty environment, apart from what this test's AWS needs; /bin/sh; the folder's own
    .venv. On the day of the first run there is nothing to compare with; then there is no news."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "security_check.py").write_text(Path(security_check.__file__).read_text())
    (tmp_path / "accept.txt").write_text("# nothing yet\n")
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.path[:0] = {sys.path!r}")
    needed = {**cloud.environment, "PYTHONPATH": str(tmp_path)}
    command = CRON.replace("/var/lib/security_check", str(tmp_path))
    env = ["env", "-i", *(f"{name}={value}" for name, value in needed.items())]
    state = tmp_path / "state.json"
    for said_something in (True, False):
        if state.exists():
            state.write_text(re.sub(r"2\d{3}-\d\d-\d\d", "2026-01-01", state.read_text()))
        ran = subprocess.run(
            [*env, "/bin/sh", "-c", command], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 1, ran.stderr
        assert bool(ran.stdout) is said_something
        assert ran.stderr == ""
    assert oct(state.stat().st_mode & 0o777) == "0o600"


def test_the_systemd_unit_runs_what_cron_runs() -> None:
    unit = configparser.ConfigParser()
    for text in SYSTEMD.values():
        unit.read_string(text)
    folder, command = unit["Service"]["WorkingDirectory"], unit["Service"]["ExecStart"]
    assert f"cd {folder} && {command.removeprefix(folder + '/')}" == CRON
    assert unit["Service"]["SuccessExitStatus"] == "1"  # findings are no failure of the unit


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not there")
def test_systemd_understands_its_unit(tmp_path: Path) -> None:
    for kind, text in SYSTEMD.items():
        text = text.replace("/var/lib/security_check/.venv/bin/python", sys.executable)
        text = text.replace("/var/lib/security_check", str(tmp_path))
        (tmp_path / f"security_check.{kind}").write_text(text)
    units = map(str, tmp_path.glob("security_check.*"))
    verify = ["systemd-analyze", "verify", "--man=no", *units]
    ran = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "security_check." not in ran.stderr
