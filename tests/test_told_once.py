"""A finding is told before it is remembered, wherever a run dies: real processes are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cloud import Cloud, Fault
from conftest import Clock
from example import Organization
from reading import read_sheet

import security_check
from security_check import main

pytestmark = pytest.mark.posix
AUGUST, SEPTEMBER, OCTOBER, NOVEMBER = (f"2030-{month:02}-01" for month in (8, 9, 10, 11))
DIES = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import security_check as script
from datetime import datetime, timezone
script.utc_now = lambda: datetime.fromisoformat("{day}T06:15:00").replace(tzinfo=timezone.utc)
*owner, name = {point!r}.split(".")
place = getattr(script, owner[0]) if owner else script
setattr(place, name, lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL))
script.main(sys.argv[1:])
"""


def killed(cloud: Cloud, point: str, *arguments: str, day: str = SEPTEMBER) -> None:
    """Run the program in a process that is killed when it comes to this function."""
    folder = str(Path(security_check.__file__).parent)
    code = DIES.format(folder=folder, day=day, point=point)
    env = {"PATH": os.environ["PATH"], **cloud.environment}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, check=False
    )
    assert ran.returncode == -9, ran.stderr.decode()


def told(clock: Clock, capsys: pytest.CaptureFixture[str], day: str, *arguments: str) -> str:
    """What a run prints on a day."""
    clock.set(day)
    capsys.readouterr()
    main(arguments)
    return capsys.readouterr().out


MFA = ("--check", "mfa")
QUIET = (*MFA, "--quiet", "--state", "state.json", "--output", "x.xls", "--json", "x.json")


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("LocalFile.write", id="in the first file"),
        pytest.param("terminal_text", id="before it is printed"),
        pytest.param("to_json", id="before the JSON report"),
        pytest.param("Run.write_states", id="before it is remembered"),
        pytest.param("write_state_file", id="when it is remembered"),
    ],
)
def test_whoever_dies_has_told_nothing_and_remembers_nothing(
    cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str], point: str
) -> None:
    told(clock, capsys, AUGUST, *QUIET)
    cloud.client("iam").create_user(UserName="late")
    before = Path("state.json").read_bytes()

    killed(cloud, point, *QUIET)
    assert Path("state.json").read_bytes() == before

    assert "late: has no MFA device" in told(clock, capsys, SEPTEMBER, *QUIET)
    Path("state.json").write_bytes(before)  # as if nobody had run it again on that day
    assert "late: has no MFA device" in told(clock, capsys, OCTOBER, *QUIET)
    assert told(clock, capsys, NOVEMBER, *QUIET) == ""


def test_a_second_run_on_the_day_tells_it_again(
    cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    told(clock, capsys, AUGUST, *QUIET)
    cloud.client("iam").create_user(UserName="late")
    first = told(clock, capsys, SEPTEMBER, *QUIET)
    assert "late: has no MFA device" in first
    assert "late: has no MFA device" in told(clock, capsys, SEPTEMBER, *QUIET)
    assert told(clock, capsys, OCTOBER, *QUIET) == ""


ALL = ("--organization", *MFA, "--quiet", "--state", "state.json", "--output", "o.xls")


@pytest.mark.parametrize("point", ["make_overview", "Run.write_states"])
def test_an_organization_remembers_nothing_before_the_overview_is_told(
    small_org: Organization,
    cloud: Cloud,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    point: str,
) -> None:
    told(clock, capsys, AUGUST, *ALL)
    before = Path("state.json").read_bytes()
    cloud.client("iam").create_user(UserName="late")
    killed(cloud, point, *ALL)
    assert Path("state.json").read_bytes() == before
    assert "late: has no MFA device" in told(clock, capsys, OCTOBER, *ALL)


@pytest.mark.parametrize(
    ("name", "arguments"), [("o.xls", ()), ("all.json", ("--json", "all.json"))]
)
def test_what_could_not_be_written_is_told_again(
    cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[str, ...],
) -> None:  # fmt: skip
    options = (*MFA, "--quiet", "--state", "state.json", "--output", "o.xls", *arguments)
    told(clock, capsys, AUGUST, *options)
    cloud.client("iam").create_user(UserName="late")
    before = Path("state.json").read_bytes()
    write = security_check.LocalFile.write

    def full(file: security_check.LocalFile, data: bytes) -> None:
        if file.path.name == name and file.path.parent == Path():
            raise OSError(28, "No space left on device")
        write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(security_check.LocalFile, "write", full)
        clock.set(SEPTEMBER)
        capsys.readouterr()
        assert main(options) == 2
        said = capsys.readouterr()
    assert "late: has no MFA device" in said.out  # the table is printed all the same
    assert "No space left on device" in said.err
    assert Path("state.json").read_bytes() == before
    assert "late: has no MFA device" in told(clock, capsys, OCTOBER, *options)


def test_one_damaged_state_costs_one_account(
    small_org: Organization, cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--organization", "--state", "{account}.json", "--output", "o.xls")
    told(clock, capsys, AUGUST, *options)
    states = sorted(path for path in Path().glob("[0-9]*.json"))
    damaged, *others = [path for path in states if path.stem != "123456789012"]
    damaged.write_text("{" * 100_000)
    before = {path: path.read_bytes() for path in others}
    clock.set(SEPTEMBER)
    assert main(options) == 3
    outcomes = {row["Account"]: row["Result"] for row in read_sheet("o.xls", "Accounts")}
    assert f"{damaged} is damaged or no state file" in outcomes[damaged.stem]
    assert all(outcomes[other.stem].startswith("audited in") for other in others)
    assert damaged.read_text() == "{" * 100_000
    assert all(path.read_bytes() != content for path, content in before.items())


def test_two_runs_of_one_account_keep_what_the_other_wrote(
    cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from two crontabs: each run knows the state of before the other one."""
    state = ("--state", "state.json", "--output", "x.xls")
    cloud.client("iam").create_user(UserName="alice")
    told(clock, capsys, AUGUST, *state)
    cloud.client("iam").delete_user(UserName="alice")
    clock.set(SEPTEMBER)
    write_states = security_check.Run.write_states

    def other_run_first(run: security_check.Run) -> list[str]:
        monkeypatch.setattr(security_check.Run, "write_states", write_states)
        main(["--check", "mfa", *state])
        return write_states(run)

    monkeypatch.setattr(security_check.Run, "write_states", other_run_first)
    main(["--check", "access-keys", *state])
    assert "mfa/alice" not in Path("state.json").read_text().partition('"resolved"')[0]


def test_an_account_that_left_is_told_once(
    small_org: Organization, cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    told(clock, capsys, AUGUST, *ALL)
    organizations = cloud.client("organizations")
    number = next(
        one["Id"]
        for one in organizations.list_accounts()["Accounts"]
        if one["Id"] not in ("123456789012",) and f'"{one["Id"]}"' in Path("state.json").read_text()
    )
    organizations.remove_account_from_organization(AccountId=number)
    said = " ".join(told(clock, capsys, SEPTEMBER, *ALL).split())
    assert f"{number}" in said
    assert "AccountLeft" in said
    later = told(clock, capsys, OCTOBER, *ALL)
    assert "AccountLeft" not in later
    assert f'"{number}"' in Path("state.json").read_text()


def test_a_region_that_is_denied_keeps_the_days_total(
    cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    ec2 = cloud.client("ec2", "eu-west-1")
    group = ec2.create_security_group(GroupName="open", Description="x")["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
    )
    told(clock, capsys, AUGUST, *QUIET, "--check", "security-groups")
    cloud.layer.faults = [Fault("UnauthorizedOperation", "ec2", "*", "eu-west-1")]
    told(clock, capsys, SEPTEMBER, *QUIET, "--check", "security-groups")
    accounts = security_check.read_state_file(security_check.LocalFile(Path("state.json")))
    august, september = accounts["123456789012"]["history"]
    assert sum(august["open"].values()) == sum(september["open"].values())
    assert september["remembered"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_what_only_a_full_disk_was_told_is_told_again(
    cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a file the text is the only result: it was not told, so it is not remembered."""
    options = ("--quiet", "--no-workbook", "--state", "state.json")
    told(clock, capsys, AUGUST, *options)
    cloud.client("iam").create_user(UserName="late")
    before = Path("state.json").read_bytes()
    env = {"PATH": os.environ["PATH"], **cloud.environment}
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, str(security_check.__file__), *options],
            env=env, stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert ran.returncode == 2, ran.stderr.decode()
    assert Path("state.json").read_bytes() == before


STATES = ["state.json", "{account}.json", "s[1]/{account}/{account}.txt"]
STATES += ["s3://reports/s/{account}/x.json"]


@pytest.mark.parametrize("state", STATES)
def test_an_account_that_left_is_told_once_whatever_the_state_is_called(
    org_with_bucket: Organization,
    cloud: Cloud,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    state: str,
) -> None:
    Path("s[1]/overview").mkdir(parents=True)
    Path("s[1]/overview/overview.txt").touch()
    options = ("--organization", *MFA, "--state", state, "--output", "o.xls")
    told(clock, capsys, AUGUST, *options)
    number = "222222222222"
    cloud.client("organizations").remove_account_from_organization(AccountId=number)
    for day, is_told in ((SEPTEMBER, True), (OCTOBER, False)):
        told(clock, capsys, day, *options)
        (row,) = (one for one in read_sheet("o.xls", "Accounts") if one["Account"] == number)
        assert ("AccountLeft" in row["Result"]) is is_told
