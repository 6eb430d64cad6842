"""main() from end to end, over HTTP: exit codes, what is found out first, what is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud, Fault
from example import fill
from reading import read_column, read_sheet, sheet_names, summary_facts

import security_check
from security_check import CHECKS, main

SCRIPT = Path(security_check.__file__)


over_http = pytest.mark.usefixtures("over_http")

# --- from end to end --------------------------------------------------------------------


def the_workbook() -> Path:
    (path,) = Path().glob("*.xls")
    return path


def secure(cloud: Cloud) -> None:
    """An account in which there is nothing to find."""
    cloud.layer.summary = {"AccountMFAEnabled": 1, "AccountAccessKeysPresent": 0}
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="trail-bucket")
    trails = cloud.client("cloudtrail")
    trails.create_trail(
        Name="main",
        S3BucketName="trail-bucket",
        IsMultiRegionTrail=True,
        EnableLogFileValidation=True,
    )
    trails.start_logging(Name="main")


@over_http
def test_exit_0_when_everything_was_checked_and_nothing_found(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    secure(cloud)
    assert main([]) == 0
    titles = [check.title for check in CHECKS]
    assert titles == [
        *("EC2-Classic", "Security groups", "Access keys"),
        *("MFA", "CloudTrail", "S3 ACLs"),
    ]
    assert sheet_names(the_workbook()) == ["Summary", *titles, "Controls"]
    assert {*read_column(the_workbook(), "Controls", "Status")} == {"PASSED"}
    for title in titles:
        assert {*read_column(the_workbook(), title, "Status")} == {"OK"}
    said = capsys.readouterr()
    assert "0 findings, everything was checked" in said.out
    assert said.out.splitlines()[-1] == str(the_workbook().resolve())
    assert said.err == ""
    assert all(len(line) <= 80 for line in said.out.splitlines()[:-1])


@over_http
def test_exit_1_when_there_are_findings(cloud: Cloud) -> None:
    secure(cloud)
    cloud.client("iam").create_user(UserName="alice")
    assert main([]) == 1


@over_http
def test_exit_3_when_a_region_is_denied_though_there_are_findings_elsewhere(cloud: Cloud) -> None:
    secure(cloud)
    cloud.client("iam").create_user(UserName="alice")
    cloud.layer.faults = [Fault("UnauthorizedOperation", "ec2", "DescribeInstances", "us-west-2")]
    assert main([]) == 3
    rows = read_sheet(the_workbook(), "EC2-Classic")
    assert [(row["Region"], row["Result"], row["Status"]) for row in rows] == [
        ("us-west-2", "UnauthorizedOperation: ec2 DescribeInstances", "NOT CHECKED"),
        ("", "No instance outside a VPC among 0 in 2 regions", "OK"),
    ]
    assert read_column(the_workbook(), "MFA", "User").count("alice") == 1


def test_an_alias_that_may_not_be_read_is_a_blank(cloud: Cloud) -> None:
    """It is decoration: a report must not be incomplete for ever because of it."""
    secure(cloud)
    cloud.layer.faults = [Fault("AccessDenied", "iam", "ListAccountAliases")]
    assert main([]) == 0
    assert "Alias" not in summary_facts(the_workbook())


@over_http
def test_the_example_account_shows_every_check_at_work(cloud: Cloud) -> None:
    fill(cloud)
    assert main([]) == 3
    for check in CHECKS:
        assert "FINDING" in read_column(the_workbook(), check.title, "Status"), check.title


@over_http
def test_nothing_is_asked_twice(cloud: Cloud) -> None:
    fill(cloud)
    cloud.layer.calls.clear()
    main([])
    asked = [(call.name, call.region, call.text) for call in cloud.layer.calls]
    assert len(asked) == len(set(asked))


def test_the_region_option_limits_the_regional_checks(cloud: Cloud) -> None:
    secure(cloud)
    assert main(["--region", "eu-west-1", "--region", "us-east-1"]) == 0
    regional = {c.region for c in cloud.layer.calls if c.operation == "DescribeSecurityGroups"}
    assert regional == {"eu-west-1", "us-east-1"}


@pytest.mark.posix
def test_output_names_the_workbook_and_replaces_it(cloud: Cloud) -> None:
    Path("report.xls").write_text("last month's")
    main(["--output", "report.xls"])
    assert "MFA" in sheet_names("report.xls")
    assert [path.name for path in Path().iterdir()] == ["report.xls"]


def test_the_workbook_is_named_after_account_and_time(cloud: Cloud) -> None:
    main([])
    name = the_workbook().name
    assert re.fullmatch(r"security_check_123456789012_\d{4}-\d\d-\d\d_\d{6}\.xls", name)


# --- what cannot start: one line, exit 2, no call, nothing written ------------------------


def unwritable(path: Path) -> str:
    path.write_text("old")
    path.chmod(0o400)
    return str(path)


BAD_ARGUMENTS = {
    "unknown option": ["--frobnicate"],
    "days that are no number": ["--max-key-age", "ninety"],
    "negative days": ["--max-key-age", "-1"],
    "unknown check": ["--check", "rds"],
    "output in a folder that is not there": ["--output", "nowhere/x.xls"],
    "output is a folder": ["--output", "."],
    "json in a folder that is not there": ["--json", "nowhere/x.json"],
    "state in a folder that is not there": ["--state", "nowhere/state.json"],
    "state file damaged": ["--state", "damaged.json"],
    "state file of a newer version": ["--state", "newer.json"],
    "state file that is other JSON": ["--state", "other.json"],
    "accept file that is not there": ["--accept", "nowhere.txt"],
    "accept line without a reason": ["--accept", "no-reason.txt"],
    "accept line with a bad date": ["--accept", "bad-date.txt"],
    "unknown profile": ["--profile", "nobody"],
}
FILES = {
    "damaged.json": '{"schema": 1, "acc',
    "newer.json": '{"schema": 99, "accounts": {}}',
    "other.json": "[1, 2]",
    "no-reason.txt": "# decisions\n\nmfa/alice\n",
    "bad-date.txt": "mfa/alice until 2030-02-31 # leaves in March\n",
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_input_is_one_line_and_exit_2_before_any_call(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    for name, text in FILES.items():
        Path(name).write_text(text)
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own way
        code = int(stop.code or 0)
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("security_check.py: ")
    assert len([line for line in said.err.splitlines() if "security_check.py: " in line]) == 1
    assert cloud.layer.calls == []
    assert {path.name: path.read_text() for path in Path().iterdir()} == FILES


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
def test_a_write_protected_workbook_is_left_alone(cloud: Cloud, tmp_path: Path) -> None:
    assert main(["--output", unwritable(tmp_path / "x.xls")]) == 2
    assert (tmp_path / "x.xls").read_text() == "old"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param("InvalidClientTokenId", "does not accept these credentials", id="wrong key"),
        pytest.param(
            "SignatureDoesNotMatch", "does not accept these credentials", id="wrong secret"
        ),
        pytest.param("ExpiredToken", "the credentials have expired", id="expired session"),
        pytest.param("AccessDenied", "cannot reach the account: ", id="anything else"),
    ],
)
def test_credentials_that_aws_refuses(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], code: str, words: str
) -> None:
    cloud.layer.faults = [Fault(code, "sts")]
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"security_check.py: {words}") or words in line
    assert cloud.layer.count() == {"sts:GetCallerIdentity": 1}
    assert list(Path().iterdir()) == []


def test_no_credentials(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert main([]) == 2
    assert "run `aws configure` or set AWS_PROFILE" in capsys.readouterr().err
    assert cloud.layer.calls == []


def test_an_sso_session_that_has_expired(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", "config")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("config").write_text(
        "[profile corp]\nsso_session = corp\nsso_account_id = 123456789012\nsso_role_name = audit\n"
        "[sso-session corp]\nsso_region = eu-west-1\nsso_start_url = https://corp.example/start\n"
    )
    assert main(["--profile", "corp"]) == 2
    assert "run `aws sso login --profile corp`" in capsys.readouterr().err


def test_aws_that_cannot_be_reached(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.setattr(security_check, "ATTEMPTS", 1)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot reach the account: EndpointConnectionError: sts GetCallerIdentity: check" in line


def test_a_region_that_the_account_does_not_have(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--region", "eu-west-1", "--region", "mars-1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("mars-1 (valid: eu-west-1, us-east-1, us-west-2)")
    assert "DescribeInstances" not in str(cloud.layer.calls)


# --- as a program -------------------------------------------------------------------------


def program(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **how,
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["--frobnicate"], ["--output", "nowhere/x.xls"]],
    ids=" ".join,
)
def test_what_needs_no_aws_does_not_import_boto3(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "boto3.py").write_text("raise SystemExit('boto3 was imported')")
    said = program(*arguments, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert "boto3 was imported" not in said.stderr
    assert said.returncode == (2 if len(arguments) == 2 or "frob" in arguments[0] else 0)


def test_help_explains_every_option_and_exit_code_in_80_columns() -> None:
    text = program("--help", env={"COLUMNS": "80", "PATH": ""}).stdout
    options = ("profile", "region", "check", "output", "json", "csv", "state", "accept")
    for option in (*options, "max-key-age", "quiet", "debug", "version"):
        assert re.search(rf"^  --{option}\b.*\S", text, re.MULTILINE), option
    for code in "0123":
        assert re.search(rf"^  {code}  \S", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80
