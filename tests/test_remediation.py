"""The command of each finding is run, and the next audit no longer shows the finding."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import botocore.loaders
import pytest
from botocore import xform_name
from botocore.session import Session
from botocore.validate import validate_parameters
from cloud import Cloud
from conftest import Canned, in_an_account
from example import fill
from hypothesis import example, given
from hypothesis import strategies as st
from making import (
    acceptance,
    check_result,
    finding,
    fine,
    manual_of,
    not_checked,
    report,
    workbook_of,
)
from reading import NOW, NUMBER, read_accounts, read_sheet, rows_by_id, summary_section

from security_check import (
    CHECKS,
    EVERYONE,
    ROOT,
    Account,
    AuditInput,
    OpenRule,
    PortRange,
    Remediation,
    Row,
    Sources,
    apply_acceptances,
    aws_cli,
    check_cloudtrail,
    cli_option,
    complete_trail,
    deactivate_key,
    evaluate_trail,
    exposure,
    main,
    revoke_commands,
    start_trail,
    trail_row,
)

REGION, GROUP = "eu-west-1", "sg-1"
OWNER, OTHER = "a" * 64, "b" * 64
ARN = f"arn:aws:cloudtrail:{REGION}:{NUMBER}:trail/main"
Rows = dict[str, dict[str, Any]]


def audit(*arguments: str) -> Rows:
    """The rows of all checks by ID, as JSON has them."""
    main(["--json", "x.json", "--output", "x.xls", *arguments])
    (account,) = read_accounts("x.json").values()
    return rows_by_id(account)


def command_of(row: dict[str, Any]) -> str:
    """The command of a finding; blank for other rows."""
    return str(row["remediation"]["command"]) if row["status"] == "FINDING" else ""


def in_bash(text: str, **variables: str) -> str:
    """The output of a bash script, which must succeed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    ran = subprocess.run(["bash", "-ec", text], env=environment, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode()


def words_of(commands: Iterable[str]) -> list[list[str]]:
    """The commands in words, as bash reads them after `aws`."""
    record = 'aws() { printf \'%s\\0\' "$#" "$@"; }\n'
    read = iter(in_bash(record + "\n".join(commands)).split("\0")[:-1])
    return [[next(read) for _ in range(int(number))] for number in read]


@functools.cache
def loader() -> Any:
    """The AWS CLI's own descriptions of the services."""
    import awscli  # type: ignore[import-untyped]

    return botocore.loaders.create_loader(str(Path(awscli.__file__).parent / "data"))


# Each call of `aws` leaves its words in a file, and prints the answer if there is one already.
ANSWERING_AWS = """
aws() {
    number=0
    while [ -e "$CALLS/$number" ]; do number=$((number + 1)); done
    printf '%s\\0' "$@" > "$CALLS/$number"
    if [ -e "$ANSWERS/$number" ]; then cat "$ANSWERS/$number"; fi
}
"""


def calls_in_bash(text: str, answers: Iterable[str]) -> list[list[str]]:
    """The words of each call of `aws` in a line, of which the first have these answers."""
    with tempfile.TemporaryDirectory() as calls, tempfile.TemporaryDirectory() as answered:
        for number, answer in enumerate(answers):
            Path(answered, f"{number}").write_text(answer)
        in_bash(ANSWERING_AWS + text, CALLS=calls, ANSWERS=answered)
        files = sorted(Path(calls).iterdir(), key=lambda file: int(file.name))
        return [file.read_text().split("\0")[:-1] for file in files]


def paste(*commands: str) -> None:
    """Run the commands by the AWS CLI; all must succeed. Its driver is the whole of `aws`, which
    takes half a second to start. A line is read again by bash until all of its calls are made:
    those in `$(...)` give words to the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DATA_PATH", "")  # which the CLI sets for the whole process
        patch.setattr("botocore.session.create_loader", lambda *_: loader())
        from awscli.clidriver import create_clidriver  # type: ignore[import-untyped]

        driver = create_clidriver()
        for text in commands:
            answers = list[str]()
            while words := calls_in_bash(text, answers)[len(answers) :]:
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    assert driver.main(words[0]) == 0, words[0]
                answers.append(out.getvalue())


def commands_of(rows: Rows) -> list[str]:
    """The commands of all findings. moto cannot revoke a rule of a protocol without ports."""
    commands = map(command_of, rows.values())
    return [text for text in commands if text and '"47"' not in text]


@pytest.mark.first
@pytest.mark.posix
@pytest.mark.parametrize("seed", [1, 2])
def test_all_commands_in_any_order_leave_nothing_that_a_command_could_fix(
    cloud: Cloud, seed: int
) -> None:
    fill(cloud)
    before = audit()
    commands = commands_of(before)
    assert len(commands) > 25
    random.Random(seed).shuffle(commands)
    cloud.layer.calls.clear()
    paste(*dict.fromkeys(commands))
    reads = {"GetBucketAcl", "GetPublicAccessBlock"}
    wrote = {call.operation for call in cloud.layer.calls} - reads
    assert wrote == {
        *("RevokeSecurityGroupIngress", "UpdateAccessKey", "StartLogging", "UpdateTrail"),
        "PUT acl",  # the bucket with a public policy has no settings that could be kept
    }
    after = audit()
    assert commands_of(after) == []
    for id, row in before.items():
        if not command_of(row):
            for one in (row, after[id]):  # the row of a region shows its trail
                one["cells"].pop("Log file validation", None)
            assert after[id] == row
    assert after.keys() <= before.keys()
    assert after["cloudtrail/us-east-1"]["status"] == "OK"


def changed(before: Rows, after: Rows) -> dict[str, tuple[str, str] | None]:
    """Severity and result of the rows that changed; None if a row is gone."""
    return {
        id: (after[id]["severity"], after[id]["result"]) if id in after else None
        for id in before.keys() | after.keys()
        if before.get(id) != after.get(id)
    }


@pytest.mark.posix
def test_what_a_command_leaves_alone(cloud: Cloud) -> None:
    """One command at a time: its finding goes, and every other row is as before. `aws` itself
    runs two, of which one reads before it writes."""
    ec2, s3, iam = (cloud.client(name, REGION) for name in ("ec2", "s3", "iam"))
    group = ec2.create_security_group(GroupName="web", Description="x")["GroupId"]
    ranges = [{"CidrIp": "0.0.0.0/0", "Description": "oops"}, {"CidrIp": "203.0.113.0/24"}]
    v6 = [{"CidrIpv6": "::/0"}, {"CidrIpv6": "2001:db8::/32"}]
    for port in (22, 3306):
        rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": ranges}
        ec2.authorize_security_group_ingress(
            GroupId=group, IpPermissions=[{**rule, "Ipv6Ranges": v6}]
        )
    place = {"LocationConstraint": REGION}
    for bucket in ("acl", "policy"):
        s3.create_bucket(Bucket=f"a-{bucket}", CreateBucketConfiguration=place)
    read = f'uri="{EVERYONE}"'
    s3.put_bucket_acl(Bucket="a-acl", GrantRead=read, GrantReadACP=read, GrantWrite=f'id="{OTHER}"')
    block = {"BlockPublicAcls": True, "IgnorePublicAcls": False, "BlockPublicPolicy": False}
    s3.put_public_access_block(Bucket="a-policy", PublicAccessBlockConfiguration=block)
    everyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"}
    s3.put_bucket_policy(Bucket="a-policy", Policy=json.dumps({"Statement": [everyone]}))
    iam.create_user(UserName="deploy")
    key = iam.create_access_key(UserName="deploy")["AccessKey"]["AccessKeyId"]
    cloud.backend("iam").users[_user_id(cloud)].access_keys[0].create_date -= timedelta(days=400)

    before = audit()
    rule_id = f"security-groups/{REGION}/{group}/TCP/{{}}"
    by_aws = (rule_id.format(22), "s3-acls/a-acl/AllUsers/READ")
    for id, became in {
        rule_id.format(22): None,
        f"access-keys/deploy/{key}": ("Low", "Inactive key is 400 days old and was never used"),
        "s3-acls/a-policy/policy": (
            "Low",
            "Its policy lets in everyone on the Internet, but the bucket public access block"
            " makes that void",
        ),
        "s3-acls/a-acl/AllUsers/READ": None,
        "s3-acls/a-acl/AllUsers/READ_ACP": None,
    }.items():
        run: Callable[[str], Any] = in_bash if id in by_aws else paste
        run(command_of(before[id]))
        after = audit()
        assert changed(before, after) == {id: became}
        assert id not in after or not command_of(after[id])
        before = after
    (left,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    kept = {rule["FromPort"]: rule for rule in left["IpPermissions"]}[22]
    assert [one["CidrIp"] for one in kept["IpRanges"]] == ["203.0.113.0/24"]
    assert [one["CidrIpv6"] for one in kept["Ipv6Ranges"]] == ["2001:db8::/32"]
    settings = s3.get_public_access_block(Bucket="a-policy")["PublicAccessBlockConfiguration"]
    assert settings == {**block, "RestrictPublicBuckets": True}
    grants = s3.get_bucket_acl(Bucket="a-acl")["Grants"]
    assert [(one["Grantee"]["ID"], one["Permission"]) for one in grants] == [(OTHER, "WRITE")]


def _user_id(cloud: Cloud) -> str:
    (id,) = cloud.backend("iam").users
    return str(id)


# --- what no command can do ------------------------------------------------------------------


class Example(NamedTuple):
    """A run on the example account, in which somebody accepted the keys of deploy."""

    rows: Rows
    book: bytes


@pytest.fixture(scope="class")
def run_on_example(server: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Example:
    with in_an_account(server, tmp_path_factory.mktemp("example")) as cloud:
        fill(cloud)
        Path("accept.txt").write_text("access-keys/deploy/* # known\n")
        return Example(audit("--accept", "accept.txt"), Path("x.xls").read_bytes())


class TestExampleAccount:
    """Of one run."""

    def test_where_there_is_no_command_the_cell_says_why(self, run_on_example: Example) -> None:
        rows, book = run_on_example
        shown = (row for check in CHECKS for row in read_sheet(book, check.title))
        cells = {row["ID"]: row["Remediation"] for row in shown}
        for start, words in {
            "ec2-classic/eu-west-1/": "(move it by hand)",
            f"access-keys/{ROOT}/keys": "(sign in as root)",
            "access-keys/former.employee/": "(already inactive)",
            "access-keys/deploy/": "",  # accepted
            f"mfa/{ROOT}": "(sign in as root)",
            "mfa/erin.novak": "(its owner must enrol a device)",
            "cloudtrail/us-west-2": "(create a trail)",
            "s3-acls/harbour-books-printer/7": "(ask the other account)",
            "ec2-classic/us-west-2/not-checked": "",  # it is no finding
        }.items():
            found = [id for id in rows if id.startswith(start)]
            assert found
            assert {cells[id] for id in found} == {words}
            assert {command_of(rows[id]) for id in found} == {""}
        assert all(cells[id] == command_of(row) for id, row in rows.items() if command_of(row))

    def test_the_summary_says_what_to_run_and_what_to_allow(self, run_on_example: Example) -> None:
        rows, book = run_on_example
        worst = summary_section(book, "Worst findings")
        shown = {text for _, text in worst if text.startswith("aws ")}
        assert shown <= {command_of(row) for row in rows.values()}
        unread = summary_section(book, "Not checked")
        (denied,) = (text for _, text in unread if text.startswith("Add to the policy: "))
        statement = json.loads(denied.partition(": ")[2])
        actions = ["ec2:DescribeInstances", "ec2:DescribeSecurityGroups", "s3:GetBucketAcl"]
        assert statement == {"Effect": "Allow", "Action": actions, "Resource": "*"}


# --- the rules -------------------------------------------------------------------------------


def trail(**about: Any) -> dict[str, Any]:
    usual = {"IsMultiRegionTrail": True, "LogFileValidationEnabled": True}
    return {"TrailARN": ARN, "Name": "main", "HomeRegion": REGION, **usual, **about}


def account(home: str = "us-east-1", profile: str = "") -> Account:
    """An account of which only the home region and the profile are asked."""
    session: Any = SimpleNamespace(region_name=home)
    return Account(session, NOW, number=NUMBER, profile=profile)


LOGGING, STOPPED = {"IsLogging": True}, {"IsLogging": False}
BY_HAND = Remediation(manual="change the trail by hand")


def selectors(kind: str = "All", *left_out: str) -> dict[str, Any]:
    about = {"ReadWriteType": kind, "IncludeManagementEvents": True}
    return {"EventSelectors": [{**about, "ExcludeManagementEventSources": [*left_out]}]}


def cloudtrail(*words: str, region: str = REGION) -> Remediation:
    return Remediation(shlex.join(("aws", "cloudtrail", *words, "--region", region)))


@pytest.mark.parametrize(
    ("status", "events", "fix"),
    [
        (STOPPED, selectors(), cloudtrail("start-logging", "--name", ARN)),
        (STOPPED, selectors("ReadOnly"), BY_HAND),
        (LOGGING, selectors("ReadOnly"), BY_HAND),
        ({**STOPPED, "LatestDeliveryError": "NoSuchBucket"}, selectors(), BY_HAND),
    ],
    ids=["stopped", "stopped, and would read only", "reads only", "without a bucket"],
)
def test_what_makes_a_trail_record(status: Any, events: Any, fix: Remediation) -> None:
    found = [evaluate_trail(trail(), status, events)]
    assert start_trail(account(), found) == fix


def test_no_trail_is_created_by_hand() -> None:
    assert start_trail(account(), []) == Remediation(manual="create a trail")


@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        ({"global services"}, ("update-trail", "--name", ARN, "--include-global-service-events")),
        ({"kms.amazonaws.com"}, ()),
        ({"global services", "kms.amazonaws.com"}, ()),
    ],
)
def test_what_makes_a_trail_complete(left_out: set[str], words: tuple[str, ...]) -> None:
    shown = [evaluate_trail(trail(), LOGGING, selectors())]
    expected = cloudtrail(*words) if words else BY_HAND
    assert complete_trail(account(), shown, left_out) == expected


def test_a_trail_of_another_account_is_left_to_it(aws: Canned) -> None:
    theirs = trail(TrailARN=ARN.replace(NUMBER, "999999999999"), IsMultiRegionTrail=True)
    theirs |= {"HasCustomEventSelectors": False, "LogFileValidationEnabled": True}
    aws.answer("cloudtrail", "DescribeTrails", {"trailList": [theirs]}, REGION)
    aws.answer("cloudtrail", "GetTrailStatus", {"IsLogging": False}, REGION)
    (row,) = check_cloudtrail(aws, REGION)
    assert manual_of(row) == "a trail of account 999999999999"


# --- the words of a command --------------------------------------------------------------------

NASTY = [
    "$(reboot)",
    "`reboot`",
    "a;b",
    "a'b",
    'a"b',
    "a b",
    "-x",
    "--profile=evil",
    "a\\b",
    "*",
    "é🔒",
]


def meaning(words: list[str]) -> list[str]:
    """The words of a command between `aws` and `--region`."""
    assert words[0] == "aws"
    return words[1 : words.index("--region")]


@given(st.text(min_size=1), st.text(min_size=1))
@example("-x", "--profile=evil")
@example("a\nb", "x")
@example("\x1b[31m", "x")
def test_a_name_stays_a_name_in_the_shell(name: str, profile: str) -> None:
    words = ("iam", "update-access-key", *cli_option("user-name", name))
    text, manual = aws_cli(account(profile=profile), "", *words)
    if not (name + profile).isprintable():
        assert (text, manual) == ("", "too long, or odd characters: by hand")
        return
    assert manual == ""
    assert text.isprintable()
    split = shlex.split(text)
    assert meaning(split) == [*words]
    assert split[split.index("--region", len(words)) :][2:] == [*cli_option("profile", profile)]
    given = [f"--user-name={name}"] if name.startswith("-") else ["--user-name", name]
    assert [*words[2:]] == given


@pytest.mark.posix
def test_a_real_shell_reads_nasty_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NASTY:
        words = ("iam", "update-access-key", *cli_option("user-name", name))
        (read,) = words_of([aws_cli(account(), "", *words).command])
        assert meaning(["aws", *read]) == [*words]


def test_a_command_that_no_cell_can_hold_is_left_out() -> None:
    long = aws_cli(account(), REGION, "ec2", "x", "y" * 40_000)
    assert long == Remediation(manual="too long, or odd characters: by hand")


FIXABLE = finding(REGION, item="x", command="aws ec2 x", manual="or by hand")


@pytest.mark.parametrize(
    ("row", "until", "shown"),
    [
        pytest.param(FIXABLE, None, ("aws ec2 x", "or by hand"), id="a finding"),
        pytest.param(
            FIXABLE, "2026-01-31", ("aws ec2 x", "or by hand"), id="an acceptance that expired"
        ),
        pytest.param(FIXABLE, "", ("", ""), id="accepted"),
        pytest.param(fine(REGION, item="x"), "", ("", ""), id="OK"),
        pytest.param(not_checked(REGION, item="x"), "", ("", ""), id="NOT CHECKED"),
    ],
)
def test_only_a_finding_has_a_command(row: Row, until: str | None, shown: tuple[str, str]) -> None:
    lines = [] if until is None else [acceptance(until=until)]
    found = [check_result("ec2-classic", row)]
    (result,), _ = apply_acceptances(found, NUMBER, AuditInput([], lines, None, "2026-11-23"))
    (after,) = result.rows
    assert after.remediation == shown


def test_the_summary_shows_a_command_that_its_line_can_hold() -> None:
    """Half a command could be copied and run."""
    short, long = "aws ec2 x --y " + "z" * 60, "aws ec2 x --y " + "z" * 160
    rows = finding("eu-west-1", command=short), finding("us-east-1", command=long)
    worst = summary_section(workbook_of(report(*rows)), "Worst findings")
    assert [text for _, text in worst if text.startswith("aws ")] == [short]


def test_the_region_is_that_of_the_resource_or_that_of_the_global_services() -> None:
    at_home = evaluate_trail(trail(HomeRegion="eu-north-1"), STOPPED, selectors())
    starts = cloudtrail("start-logging", "--name", ARN, region="eu-north-1")
    assert start_trail(account(), [at_home]) == starts
    china = deactivate_key(account(home="cn-north-1"), "alice", "AKIAEXAMPLE")
    assert china.command.endswith("--region cn-north-1")


# --- what moto does not do, held to botocore's model of the call ---------------------------------


def parameters(words: Any) -> dict[str, Any]:
    """The parameters of the call that the words of a command name; they must be the model's."""
    service = {"s3api": "s3"}.get(words[0], words[0])
    model = Session().get_service_model(service)
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    shape = model.operation_model(operations[words[1]]).input_shape
    assert shape is not None
    names = {xform_name(name, "-"): name for name in shape.members}
    sent: dict[str, Any] = {}
    rest = [*words[2:]]
    while rest:
        name = rest.pop(0).removeprefix("--")
        switch = name.removeprefix("enable-")
        if name in names and shape.members[names[name]].type_name != "boolean":
            text = rest.pop(0)
            sent[names[name]] = json.loads(text) if text[:1] in ("[", "{") else text
        else:
            full = name if name in names else next(n for n in names if n.endswith(switch))
            sent[names[full]] = True
    validate_parameters(sent, shape)
    return sent


def test_a_rule_of_a_protocol_without_ports_and_of_prefix_lists() -> None:
    lists = [{"PrefixListId": "pl-1"}, {"PrefixListId": "pl-2", "Description": "x"}]
    rule = {"IpProtocol": "47", "IpRanges": [{"CidrIp": "0.0.0.0/0"}], "PrefixListIds": lists}
    other = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 2, "IpRanges": rule["IpRanges"]}
    group = {"GroupId": GROUP, "IpPermissions": [rule, other]}
    sources = Sources(["0.0.0.0/0"], {"pl-1": ["203.0.113.0/24"], "pl-2": ["::/0"]}, {})
    gre = PortRange("GRE", None, None)
    opened = OpenRule(group, gre, sources, exposure(sources.all_cidrs()), gre, {})
    sent = [parameters(words) for words in revoke_commands(opened)]
    one_each = [
        {"IpProtocol": "47", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        {"IpProtocol": "47", "PrefixListIds": [{"PrefixListId": "pl-2"}]},
    ]
    assert sent == [{"GroupId": GROUP, "IpPermissions": [one]} for one in one_each]


def call_of(fix: Remediation) -> list[str]:
    """The service, the operation and its options, without those that every command has."""
    return meaning(shlex.split(fix.command))


def test_the_calls_on_trails_are_the_models() -> None:
    found = evaluate_trail(trail(LogFileValidationEnabled=False), STOPPED, selectors())
    on = parameters(call_of(trail_row(account(), found).remediation))
    assert on == {"Name": ARN, "EnableLogFileValidation": True}
    assert parameters(call_of(start_trail(account(), [found]))) == {"Name": ARN}
    complete = complete_trail(account(), [found], {"global services"})
    assert parameters(call_of(complete)) == {"Name": ARN, "IncludeGlobalServiceEvents": True}
