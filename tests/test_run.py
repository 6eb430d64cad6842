"""The runner, and main() from end to end over HTTP: exit codes, preflight, what is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloud as cloud_module
import pytest
import xlrd
from cloud import Bucket, Cloud, Fault
from conftest import Canned
from example import fill

import security_check
from security_check import (
    Account,
    Check,
    Pace,
    Row,
    Sheet,
    Unanswered,
    gap,
    main,
    result_words,
    run_check,
)

SCRIPT = Path(security_check.__file__)


def some_check(rows: Any, targets: Any = ("a", "b", "c"), nothing: str = "nothing") -> Check:
    def over(aws: Account) -> Iterator[str]:
        yield from targets() if callable(targets) else targets

    about = ("about", "https://docs.aws.amazon.com/")
    return Check("Some check", over, ("Target", "Value"), *about, nothing, rows)


def quiet(text: str) -> None:
    """No progress."""


def row(target: str) -> Row:
    return Row(target, "", {"Target": target, "Value": 1}, "fine")


def results(sheet: Sheet) -> list[str]:
    return [result_words(row) for row in sheet.rows]


# --- the pace of calls --------------------------------------------------------------------

THROTTLED = (None, {"Error": {"Code": "Throttling"}})
ANSWERED: tuple[None, dict[str, Any]] = (None, {})


class Clock:
    """Stands in for the module `time`, and for an hour of waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(security_check, "time", clock)
    monkeypatch.setattr(cloud_module, "time", clock)
    return clock


def test_nobody_waits_before_aws_throttles(clock: Clock) -> None:
    pace = Pace()
    for response in (ANSWERED, None, (None, {"Error": {"Code": "AccessDenied"}})) * 100:
        pace.wait()
        pace.learn(response)
    assert clock.now == 1000


def test_a_volley_of_refusals_slows_down_once(clock: Clock) -> None:
    pace = Pace()
    for _ in range(30):
        pace.learn(THROTTLED)
    pace.wait()
    pace.wait()
    assert clock.now == 1000 + security_check.FIRST_GAP


@pytest.mark.parametrize("rate", [1, 5, 20, 30])
def test_the_pace_finds_what_aws_allows(clock: Clock, rate: float) -> None:
    pace, bucket, refused, answered = Pace(), Bucket(rate, burst=20), 0, 0
    while answered < 1000:
        pace.wait()
        clock.now += 0.001
        if bucket.take():
            answered += 1
            pace.learn(ANSWERED)
        else:
            refused += 1
            pace.learn(THROTTLED)
    assert clock.now - 1000 <= 1.1 * (answered - bucket.burst) / rate
    assert refused <= answered / 5


def test_every_call_keeps_the_pace(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Pace, "wait", lambda pace, **_: heard.append("wait"))
    monkeypatch.setattr(Pace, "learn", lambda pace, **_: heard.append("learn"))
    cloud.layer.faults.append(Fault("Throttling", "iam", "ListUsers", times=1))
    main([])
    assert heard.count("wait") == heard.count("learn") == len(cloud.layer.calls)


# --- rows -------------------------------------------------------------------------------

LACK = Unanswered("AccessDenied", "s3", "ListBuckets")


@pytest.mark.parametrize(
    ("row", "id", "status", "grade"),
    [
        pytest.param(Row("t", "", {}, "fine"), "t", "OK", "OK", id="fine"),
        pytest.param(Row("t", "p/q", {}, "fine"), "t/p/q", "OK", "OK", id="a part that is fine"),
        pytest.param(Row("t", "", {}, "bad", "Low"), "t", "FINDING", "Low", id="finding"),
        pytest.param(Row("t", "p", {}, "bad", "High"), "t/p", "FINDING", "High", id="of a part"),
        pytest.param(
            gap("t", "", {}, LACK), "t/not-checked", "NOT CHECKED", "NOT CHECKED", id="gap"
        ),
        pytest.param(
            gap("t", "p", {}, LACK), "t/p", "NOT CHECKED", "NOT CHECKED", id="gap of a part"
        ),
    ],
)
def test_a_row_says_what_it_is(row: Row, id: str, status: str, grade: str) -> None:
    assert (row.id, row.status, row.grade) == (id, status, grade)


def test_a_gap_keeps_what_was_asked_but_not_who_asked() -> None:
    try:
        raise LACK
    except Unanswered as error:
        kept = gap("t", "", {}, error).gap
    assert kept == LACK
    assert kept is not None
    assert kept.__traceback__ is None
    assert kept.permission == "s3:ListAllMyBuckets"


# --- the runner -------------------------------------------------------------------------


def test_rows_come_in_target_order_whatever_answers_first(aws: Canned) -> None:
    import threading

    last_has_answered = threading.Event()

    def rows(aws: Account, target: str) -> Iterator[Row]:
        if target == "c":
            last_has_answered.set()
        last_has_answered.wait(10)
        yield row(target)

    assert run_check(some_check(rows), aws, quiet).rows == [row("a"), row("b"), row("c")]


def test_a_failure_costs_the_rest_of_its_target_and_says_so(aws: Canned) -> None:
    denied = Unanswered("AccessDenied", "ec2", "DescribeInstances")

    def rows(aws: Account, target: str) -> Iterator[Row]:
        yield row(target)
        if target == "b":
            raise denied
        yield row(target)

    sheet = run_check(some_check(rows), aws, quiet)
    unread = Row("b", "", {"Target": "b"}, gap=denied)
    assert sheet.rows == [row("a"), row("a"), row("b"), unread, row("c"), row("c")]
    assert (unread.id, unread.status) == ("b/not-checked", "NOT CHECKED")
    assert result_words(unread) == "AccessDenied: ec2 DescribeInstances"
    assert (sheet.unread, sheet.listed) == ({"b"}, True)


@pytest.mark.parametrize("code", ["NoSuchEntity", "NoSuchBucket"])
def test_what_vanished_since_it_was_listed_gives_no_row(aws: Canned, code: str) -> None:
    def rows(aws: Account, target: str) -> Iterator[Row]:
        yield row(target)
        if target == "b":
            raise Unanswered(code, "s3", "GetBucketAcl")

    sheet = run_check(some_check(rows), aws, quiet)
    assert sheet.rows == [row("a"), row("c")]
    assert sheet.unread == set()


@pytest.mark.survives_bugs
def test_a_bug_costs_its_target_only_and_leaves_a_traceback(
    aws: Canned, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(aws: Account, target: str) -> Iterator[Row]:
        if target == "b":
            raise KeyError("Surprise")
        yield row(target)

    sheet = run_check(some_check(rows), aws, quiet)
    assert results(sheet) == ["fine", "InternalError: KeyError: 'Surprise'", "fine"]
    assert "Traceback" in capsys.readouterr().err


def test_targets_that_cannot_be_listed_are_a_gap_after_those_that_could(aws: Canned) -> None:
    def targets() -> Iterator[str]:
        yield "a"
        raise Unanswered("AccessDenied", "iam", "ListUsers")

    sheet = run_check(some_check(lambda aws, target: iter([row(target)]), targets), aws, quiet)
    assert results(sheet) == ["fine", "AccessDenied: iam ListUsers"]
    assert sheet.rows[1].id == "over/not-checked"
    assert (sheet.unread, sheet.listed) == ({"over"}, False)


@pytest.mark.parametrize(
    ("targets", "denied", "words"),
    [
        pytest.param("ab", "", ["nothing among 20 in 2"], id="all looked at"),
        pytest.param("", "", ["nothing among 0 in 0"], id="no targets at all"),
        pytest.param(
            "ab", "b", ["nothing among 10 in 1", "Denied: b"], id="only what was read counts"
        ),
        pytest.param("ab", "ab", ["Denied: a", "Denied: b"], id="nothing read is not nothing"),
    ],
)
def test_an_empty_sheet_says_how_much_was_looked_at(
    aws: Canned, targets: str, denied: str, words: list[str]
) -> None:
    def rows(aws: Account, target: str) -> Any:
        if target in denied:
            raise Unanswered("Denied", target)
        yield from ()
        return 10

    check = some_check(rows, targets, nothing="nothing among {looked_at} in {targets}")
    assert results(run_check(check, aws, quiet)) == words


def test_expired_credentials_are_said_once_a_check_and_nobody_asks_again(aws: Canned) -> None:
    aws.refuse("iam", "ListAccessKeys", "ExpiredToken")

    def rows(aws: Account, target: str) -> Iterator[Row]:
        yield row(target)
        yield from aws.fetch("iam", "ListAccessKeys", "AccessKeyMetadata", UserName=target)

    check = replace(some_check(rows, [f"user-{n}" for n in range(100)]), threads=1)
    sheet = run_check(check, aws, quiet)
    (expired,) = (found for found in sheet.rows if found.status == "NOT CHECKED")
    assert result_words(expired) == "ExpiredToken: iam ListAccessKeys"
    assert (expired.id, expired.cells) == ("expired/not-checked", {"Target": "100 over"})
    assert set(sheet.unread) == set(check.over(aws))


# --- from end to end --------------------------------------------------------------------


def read(path: Path) -> dict[str, list[list[Any]]]:
    """A workbook by sheet, below the title and the note."""
    book = xlrd.open_workbook(path)
    return {
        sheet.name: [sheet.row_values(n) for n in range(2, sheet.nrows)] for sheet in book.sheets()
    }


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


def test_exit_0_when_everything_was_checked_and_nothing_found(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    secure(cloud)
    assert main([]) == 0
    sheets = read(the_workbook())
    titles = ["EC2-Classic", "Security groups", "Access keys", "MFA", "CloudTrail", "S3 ACLs"]
    assert list(sheets) == ["Summary", *titles, "Controls"]
    assert {line[3] for line in sheets["Controls"][1:]} == {"PASSED"}
    for title in titles:
        header, *rows = sheets[title]
        assert rows
        assert {line[header.index("Status")] for line in rows} == {"OK"}
    said = capsys.readouterr()
    assert "0 findings, everything was checked" in said.out
    assert said.out.splitlines()[-1] == str(the_workbook().resolve())
    assert said.err == ""
    assert all(len(line) <= 80 for line in said.out.splitlines()[:-1])


def test_exit_1_when_there_are_findings(cloud: Cloud) -> None:
    secure(cloud)
    cloud.client("iam").create_user(UserName="alice")
    assert main([]) == 1


def test_exit_3_when_a_region_is_denied_though_there_are_findings_elsewhere(cloud: Cloud) -> None:
    secure(cloud)
    cloud.client("iam").create_user(UserName="alice")
    cloud.layer.faults = [Fault("UnauthorizedOperation", "ec2", "DescribeInstances", "us-west-2")]
    assert main([]) == 3
    sheets = read(the_workbook())
    header, *rows = sheets["EC2-Classic"]
    shown = [(line[0], line[header.index("Result")], line[header.index("Status")]) for line in rows]
    assert shown == [
        ("us-west-2", "UnauthorizedOperation: ec2 DescribeInstances", "NOT CHECKED"),
        ("", "No instance outside a VPC among 0 in 2 regions", "OK"),
    ]
    assert [line[0] for line in sheets["MFA"][1:] if line[0] == "alice"] == ["alice"]


def test_an_alias_that_may_not_be_read_is_a_gap_too(cloud: Cloud) -> None:
    secure(cloud)
    cloud.layer.faults = [Fault("AccessDenied", "iam", "ListAccountAliases")]
    assert main([]) == 3
    assert ["Alias", "NOT CHECKED: AccessDenied: iam ListAccountAliases"] in [
        line[:2] for line in read(the_workbook())["Summary"]
    ]


def test_the_example_account_shows_every_check_at_work(cloud: Cloud) -> None:
    fill(cloud)
    assert main([]) == 3
    for title, (header, *rows) in read(the_workbook()).items():
        if title not in ("Summary", "Controls"):
            assert "FINDING" in {line[header.index("Status")] for line in rows}, title


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
    assert "MFA" in read(Path("report.xls"))
    assert [path.name for path in Path().iterdir()] == ["report.xls"]
    assert Path("report.xls").stat().st_mode & 0o777 == 0o600


def test_the_workbook_is_named_after_account_and_time(cloud: Cloud) -> None:
    main([])
    name = the_workbook().name
    assert re.fullmatch(r"security_check_123456789012_\d{4}-\d\d-\d\d_\d{4}\.xls", name)


@pytest.mark.parametrize(
    ("configured", "only", "home", "sts"),
    [
        pytest.param(None, [], "us-east-1", "https://sts.us-east-1.amazonaws.com", id="nothing"),
        pytest.param(
            "cn-north-1", [], "cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn", id="China"
        ),
        pytest.param(
            None,
            ["cn-northwest-1"],
            "cn-northwest-1",
            "https://sts.cn-northwest-1.amazonaws.com.cn",
            id="China, asked for",
        ),
        pytest.param(
            "us-gov-west-1",
            [],
            "us-gov-west-1",
            "https://sts.us-gov-west-1.amazonaws.com",
            id="Gov",
        ),
        pytest.param(
            "eu-west-1", ["mars-1"], "eu-west-1", "https://sts.eu-west-1.amazonaws.com", id="typo"
        ),
    ],
)
def test_partitions_start_from_a_region_of_their_own(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, only: list[str], home: str, sts: str
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    aws = Canned(region=configured, only=only)
    assert aws.region == home
    assert aws.client("sts", aws.region).meta.endpoint_url == sts


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
    "csv folder that is not there": ["--csv", "nowhere"],
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
    assert "cannot reach the account: Could not connect" in line


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
        timeout=60,
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


def test_the_clients_have_no_method_that_writes() -> None:
    keys = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    session: Any = security_check.new_session(None, **keys)
    for service in ("cloudtrail", "ec2", "iam", "organizations", "s3", "s3control", "sts"):
        client = session.client(service)
        names = client.meta.method_to_api_mapping.values()
        assert names
        assert not [name for name in names if not name.startswith(security_check.READS)]
    assert not hasattr(session.client("ec2"), "terminate_instances")
