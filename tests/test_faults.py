"""Never wrong in silence: every call that a run makes is made to fail, in every way.

The table of calls is what a clean run was seen to make; each is refused, throttled,
broken, dropped, hung and answered with rubbish. The outcomes are counted at the end.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from cloud import REGIONS, BlockPublicAccess, Call, Cloud, Fault, set_regions
from conftest import Clock, audited, enter, objects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import read_column

import security_check
from security_check import NOTHING_TARGET, Account, CheckResult, Report, describe_result

REGION = "eu-west-1"
Outcome = Callable[[str], None]


def fill(cloud: Cloud) -> None:
    """A small account in which every call of the script has a reason to be made."""
    ec2 = cloud.client("ec2", REGION)
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    prefixes = ec2.create_managed_prefix_list(
        PrefixListName="all", MaxEntries=5, AddressFamily="IPv4", Entries=[{"Cidr": "0.0.0.0/0"}]
    )["PrefixList"]["PrefixListId"]
    for name, sources in (
        ("ssh", {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}),
        ("listed", {"PrefixListIds": [{"PrefixListId": prefixes}]}),
    ):
        group = ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
        rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **sources}
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    cloud.layer.block_public_access[REGION] = BlockPublicAccess("block-ingress")
    iam = cloud.client("iam")
    for name in ("alice", "bob"):
        iam.create_user(UserName=name)
        iam.create_access_key(UserName=name)
        for key in cloud.backend("iam").users[name].access_keys:
            key.create_date = datetime(2020, 1, 1)  # in UTC, without saying so
    iam.create_login_profile(UserName="alice", Password="Correct-horse-1")
    iam.generate_credential_report()  # from now on an old one, so that users are asked about
    s3 = cloud.client("s3")
    for name in ("open-bucket", "closed-bucket"):
        s3.create_bucket(Bucket=name)
    s3.put_bucket_acl(Bucket="open-bucket", ACL="public-read")
    trails = cloud.client("cloudtrail")
    trails.create_trail(Name="main", S3BucketName="closed-bucket", IsMultiRegionTrail=True)
    selectors = [{"ReadWriteType": "All", "IncludeManagementEvents": True}]
    trails.put_event_selectors(TrailName="main", EventSelectors=selectors)
    trails.start_logging(Name="main")


CALLS = [
    *("sts:GetCallerIdentity", "ec2:DescribeRegions", "iam:ListAccountAliases"),
    *("ec2:DescribeInstances", "ec2:DescribeSecurityGroups", "ec2:GetManagedPrefixListEntries"),
    *("ec2:DescribeNetworkInterfaces", "ec2:DescribeVpcBlockPublicAccessOptions"),
    *("ec2:DescribeVpcs", "ec2:DescribeVpcBlockPublicAccessExclusions"),
    *("iam:ListUsers", "iam:GetAccountSummary"),
    *("iam:ListAccessKeys", "iam:GetAccessKeyLastUsed", "iam:GenerateCredentialReport"),
    *("iam:GetCredentialReport", "iam:ListVirtualMFADevices", "iam:ListMFADevices"),
    "iam:GetLoginProfile",
    *("cloudtrail:DescribeTrails", "cloudtrail:GetTrailStatus", "cloudtrail:GetEventSelectors"),
    *("s3:ListBuckets", "s3:GetBucketAcl", "s3:GetBucketPolicyStatus"),
    *("s3:GetPublicAccessBlock", "s3control:GetPublicAccessBlock"),
]
# The checks that make a call, by its name or its service.
CHECKS_WITH = {
    "ec2:DescribeRegions": ("ec2-classic", "security-groups", "cloudtrail"),
    "ec2": ("ec2-classic", "security-groups"),
    **dict.fromkeys(("sts", "iam"), ("access-keys", "mfa")),
    "cloudtrail": ("cloudtrail",),
    **dict.fromkeys(("s3", "s3control"), ("s3-acls",)),
}
# Without the report everything is asked live; only root's last sign-in is not known then.
REPLACED = {"iam:GenerateCredentialReport", "iam:GetCredentialReport"}
DECORATION = {"iam:ListAccountAliases"}  # without the alias nothing is missing but a word

# What is asked apart about a target, so that its rows stay, with what else is known of them.
PARTS = ("interfaces", "block", "password")

# How each protocol says no; an explicit deny, of a policy or of an SCP, has the same code.
DENIED_CODES = {"ec2": "UnauthorizedOperation", "cloudtrail": "AccessDeniedException"}
FOR_GOOD = {
    "refused": Fault("refused", status=403),
    "throttled": Fault("Throttling"),
    "internal error": Fault("InternalError", status=500),
    "unavailable": Fault("ServiceUnavailable", status=503),
    "dropped": Fault("drop"),
    "hung": Fault("silence"),
    "rubbish": Fault("rubbish"),
    "truncated": Fault("truncate"),
}
# What a row that is NOT CHECKED says: the error code, or the name of botocore's exception.
CODES = {
    "refused": {"AccessDenied", *DENIED_CODES.values()},
    "throttled": {"Throttling"},
    "internal error": {"InternalError"},
    "unavailable": {"ServiceUnavailable"},
    "dropped": {"ConnectionClosedError", "ProxyConnectionError"},
    "hung": {"ReadTimeoutError"},
    "rubbish": {"MalformedResponse"},
    "truncated": {"MalformedResponse", "404", "500"},
}
FOR_A_WHILE = {
    "throttled twice": Fault("Throttling", times=2),
    "unavailable twice": Fault("ServiceUnavailable", status=503, times=2),
    "dropped once": Fault("drop", times=1),
    "hung once": Fault("silence", times=1),
}


def fault_for(name: str, fault: Fault) -> Fault:
    service, operation = name.split(":")
    kind = DENIED_CODES.get(service, "AccessDenied") if fault.kind == "refused" else fault.kind
    return replace(fault, kind=kind, service=service, operation=operation)


@pytest.fixture(scope="module", autouse=True)
def one_region() -> Iterator[None]:
    set_regions([REGION])
    yield
    set_regions(REGIONS)


@pytest.fixture
def outcome(record_property: Callable[[str, object], None]) -> Outcome:
    """Tell what became of a fault; the suite prints the counts at its end."""
    return lambda what: record_property("outcome of a fault", what)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """No pauses between attempts, of which there are always four, and the same day for all
    runs."""
    clock.set("2030-01-01")
    monkeypatch.setattr(security_check, "ATTEMPTS", 4)
    monkeypatch.setattr(security_check, "REPORT_PAUSE", 0)
    monkeypatch.setattr(security_check, "MALFORMED_PAUSE", 0)
    backoff = "botocore.retries.standard.ExponentialBackoff"
    monkeypatch.setattr(f"{backoff}._MAX_BACKOFF", 0)
    monkeypatch.setattr(f"{backoff}.delay_amount", lambda *_: 0.001)
    monkeypatch.setattr("botocore.retries.quota.RetryQuota.acquire", lambda *_: True)
    monkeypatch.setattr(security_check.Pace, "wait", lambda *_, **__: None)


Clients = dict[Any, Any]


@pytest.fixture(scope="module")
def clients() -> Clients:
    """Those of the runs without a fault."""
    return {}


def share(patch: pytest.MonkeyPatch, clients: Clients, keep: bool) -> None:
    """To make a client takes longer than to ask with it, so those that are kept are used again.
    Only runs without a fault keep theirs, as a client knows where its first run heard nothing."""
    make = Account.client

    def client(self: Account, service: str, region: str) -> Any:
        core: Any = self.session._session
        key = (service, region, core.get_component("data_loader"))  # files have their own
        if key in clients:
            return clients[key]
        made = make(self, service, region)
        if keep:
            clients[key] = made
        return made

    patch.setattr(Account, "client", client)


def checks_with(call: str) -> list[str]:
    """The options for the checks that make a call."""
    service, _ = call.split(":")
    return ["--check", *CHECKS_WITH.get(call, CHECKS_WITH[service])]


def rows(report: Report) -> dict[str, dict[str, security_check.Row]]:
    """The rows by sheet and ID; the clock must not make a difference."""
    return {one.check.name: {row.id: row for row in one.rows} for one in report.results}


def assert_same(faulty: Report, clean: Report) -> None:
    """The sheets of a run are those of the clean run, which may have more."""
    expected = rows(clean)
    assert rows(faulty) == {
        result.check.name: expected[result.check.name] for result in faulty.results
    }


def result_of(report: Report, check: str) -> CheckResult:
    (result,) = (one for one in report.results if one.check.name == check)
    return result


def is_covered(result: CheckResult, id: str) -> bool:
    """Whether a row that is NOT CHECKED stands for one that a clean run would show."""
    unread = {row.id for row in result.rows if row.status == "NOT CHECKED"}
    if id == NOTHING_TARGET:
        return bool(unread)
    target, noun = id.split("/")[0], result.check.targets.noun
    return bool(unread & {f"{one}/not-checked" for one in (id, target, f"<{noun}>")})


def assert_honest(clean: Report, faulty: Report, codes: set[str]) -> None:
    """Every answer is that of the clean run, or is said to be missing, and why."""
    expected = rows(clean)
    for result in faulty.results:
        clean_rows = dict(expected[result.check.name])
        found = {row.id for row in result.rows}
        for row in result.rows:
            if row.error:
                assert row.status == "NOT CHECKED", row
                assert row.error.code in codes, row
            elif row.id != NOTHING_TARGET and row != clean_rows[row.id]:
                assert row.status == "FINDING", row
                parts = (row.target, row.id, *(f"{row.target}/{part}" for part in PARTS))
                assert {f"{part}/not-checked" for part in parts} & found, row
        for id in clean_rows.keys() - found:
            assert is_covered(result, id), f"{result.check.name}/{id} is missing in silence"


@dataclass
class Small:
    """The small account is what the server holds, and this is what a run without a fault finds
    there."""

    clean: Report


@pytest.fixture
def small(
    server: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: None, clients: Clients
) -> Cloud:
    """The small account, which no test changes."""
    enter(server, monkeypatch, tmp_path)
    if not isinstance(server.holds, Small):
        server.reset()
        fill(server)
        server.remember()
        with monkeypatch.context() as patch:
            share(patch, clients, keep=True)
            server.holds = Small(audited())
    share(monkeypatch, clients, keep=False)
    server.layer.faults = []
    server.layer.calls.clear()
    return server


@pytest.fixture
def clean(small: Cloud) -> Report:
    report: Report = small.holds.clean
    assert report.errors() == []
    return report


def test_the_table_of_calls_is_what_a_run_makes(small: Cloud, clean: Report) -> None:
    assert rows(audited()) == rows(clean)
    assert set(small.layer.count()) == set(CALLS)


@pytest.mark.parametrize("kind", FOR_GOOD)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails_for_good(
    small: Cloud, clean: Report, outcome: Outcome, name: str, kind: str
) -> None:
    fault = fault_for(name, FOR_GOOD[kind])
    small.layer.faults = [fault]
    if name == "sts:GetCallerIdentity":
        with pytest.raises(security_check.CannotRun):
            audited()
        assert list(Path().iterdir()) == []
        outcome("could not start")
        return
    # of one kind everything is asked, and a workbook is made: with others only the code differs
    everything = kind == "refused"
    faulty = audited(*([] if everything else checks_with(name)), workbook=everything)
    assert fault.hits
    asked = Counter((call.name, call.region, call.text) for call in small.layer.calls)
    assert max(asked.values()) <= security_check.ATTEMPTS
    assert_honest(clean, faulty, CODES[kind] | {"NoResponse"})
    if name in DECORATION:
        assert_same(faulty, clean)
        assert (faulty.exit_code(), faulty.aliases) == (1, [])
        outcome("left blank")
    elif name in REPLACED:
        assert faulty.exit_code() == 1
        outcome("answered in another way")
    else:
        assert faulty.exit_code() == 3
        outcome("NOT CHECKED")


@pytest.mark.parametrize("kind", FOR_A_WHILE)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails_for_a_while(
    small: Cloud, clean: Report, outcome: Outcome, name: str, kind: str
) -> None:
    fault = fault_for(name, FOR_A_WHILE[kind])
    small.layer.faults = [fault]
    assert_same(audited(*checks_with(name)), clean)
    assert fault.hits == fault.times
    outcome("made good")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(refused=st.sets(st.sampled_from([name for name in CALLS if name[:3] != "sts"]), min_size=1))
def test_no_status_is_ok_because_something_could_not_be_read(
    small: Cloud, clean: Report, refused: set[str]
) -> None:
    small.layer.faults = [fault_for(name, FOR_GOOD["refused"]) for name in refused]
    faulty = audited()
    assert_honest(clean, faulty, CODES["refused"])
    found = {
        kind: {
            one.check.id(row)
            for one in report.results
            for row in one.rows
            if row.status == "FINDING"
        }
        for kind, report in (("clean", clean), ("faulty", faulty))
    }
    assert found["faulty"] <= found["clean"]


def test_without_report_and_login_profile_a_password_is_not_checked(
    small: Cloud, clean: Report
) -> None:
    small.layer.faults = [
        Fault("AccessDenied", "iam", "GetCredentialReport"),
        Fault("AccessDenied", "iam", "GetLoginProfile", resource="bob"),
    ]
    faulty = audited()
    assert_honest(clean, faulty, {"AccessDenied"})
    results = {row.id: describe_result(row) for row in result_of(faulty, "mfa").rows}
    assert results["bob/password/not-checked"] == "AccessDenied: iam GetLoginProfile"
    assert results["bob"] == "Has no MFA device"


# --- a region that does not answer, credentials that expire -----------------------------


@pytest.mark.first
def test_a_region_that_does_not_answer_is_soon_left_alone(
    cloud: Cloud, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What costs time are time-outs one after another: two for the first call, one for each
    other call of the region, side by side for its buckets. Five of ten seconds in all."""
    fill(cloud)
    for n in range(45):
        place = {"LocationConstraint": REGION}
        client = cloud.client("s3", REGION)
        client.create_bucket(Bucket=f"bucket-{n}", CreateBucketConfiguration=place)
    made, lock = Account.client, threading.RLock()

    def client_in(self: Account, service: str, region: str) -> Any:
        """Nothing comes from the region, so a short time-out is as good as a long one there."""
        with lock:
            monkeypatch.setattr(security_check, "READ_TIMEOUT", 0.2 if region == REGION else 600)
            return made(self, service, region)

    monkeypatch.setattr(Account, "client", client_in)
    cloud.layer.calls.clear()
    cloud.layer.faults = [Fault("hang", region=REGION)]
    report = audited()
    asked = Counter(call.operation for call in cloud.layer.calls if call.region == REGION)
    assert asked.pop("GetBucketAcl") <= security_check.CONNECTIONS + security_check.MAX_FAILURES
    for first in ("DescribeInstances", "DescribeTrails"):  # which are on the way together
        assert asked.pop(first) <= 2
    assert asked == {"DescribeSecurityGroups": 1}
    results = {describe_result(row) for row in report.rows()}
    assert "ReadTimeoutError: ec2 DescribeSecurityGroups" in results
    keys = [row.status for row in result_of(report, "access-keys").rows]
    assert keys.count("FINDING") == 2


def test_many_targets_that_do_not_answer_are_not_asked_one_by_one(
    cloud: Cloud, quick: None
) -> None:
    for n in range(100):
        cloud.client("s3").create_bucket(Bucket=f"bucket-{n}")
    all_on_the_way = threading.Barrier(security_check.CONNECTIONS)

    class Together(Fault):
        """Nobody has heard of another's silence before all have asked."""

        def strikes(self, call: Call) -> bool:
            struck = super().strikes(call)
            if struck and self.hits <= security_check.CONNECTIONS:
                all_on_the_way.wait(timeout=300)
            return struck

    fault = Together("silence", "s3", "GetBucketAcl")
    cloud.layer.faults = [fault]
    report = audited("--check", "s3-acls")
    assert len(report.rows("NOT CHECKED")) == 100
    assert security_check.CONNECTIONS < fault.hits <= 3 * security_check.CONNECTIONS
    words = {describe_result(row) for row in result_of(report, "s3-acls").rows}
    assert "NoResponse: s3 GetBucketAcl (asked 3 times)" in words


@dataclass
class Expired(Fault):
    """Strikes every call from the first that it is about."""

    kind: str = "ExpiredToken"

    def strikes(self, call: Call) -> bool:
        with self.lock:
            struck = self.hits > 0 or call.operation == self.operation
            self.hits += struck
        return struck


def test_credentials_that_expire_in_the_middle(
    cloud: Cloud, quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[threading.Thread]()  # that the credentials have expired
    send = vars(Account)["_wait_for"]

    def listening(self: Account, *call: Any) -> Any:
        try:
            return send(self, *call)
        except ClientError:
            told.append(threading.current_thread())
            raise

    monkeypatch.setattr(Account, "_wait_for", listening)
    for n in range(100):
        cloud.backend("iam").create_user("us-east-1", f"user-{n}")
    fault = Expired(operation="ListAccessKeys")
    cloud.layer.faults = [fault]
    assert security_check.main(["--output", "x.xls"]) == 3
    assert len(told) == fault.hits
    assert len(set(told)) == len(told), "somebody knew it, and asked again"
    assert read_column("x.xls", "Access keys", "Status").count("NOT CHECKED") == 1
    assert capsys.readouterr().err.count("expired") == 1


# --- files in S3 ------------------------------------------------------------------------------

BUCKET = "files"
AUDIT = [
    "--check",
    "mfa",
    *("--output", f"s3://{BUCKET}/x.xls", "--json", f"s3://{BUCKET}/r/x.json"),
]
AUDIT += ["--state", f"s3://{BUCKET}/state.json", "--accept", f"s3://{BUCKET}/accept.txt"]
MERGE = ["--merge", f"s3://{BUCKET}/r/", "--output", "o.xls"]
# What is done, which of its calls fails, how many of them come through before, and what is said.
FILE_CALLS = {
    "to find out whether it may be written": (AUDIT, "PutObject", 0),
    "to read the state": (AUDIT, "GetObject", 0),
    "to read the acceptances": (AUDIT, "GetObject", 1),
    "to put the workbook": (AUDIT, "PutObject", 3),
    "to put the report": (AUDIT, "PutObject", 4),
    "to put the state, which is read first": (AUDIT, "GetObject", 2),
    "to put the state": (AUDIT, "PutObject", 5),
    "to list the reports": (MERGE, "ListObjectsV2", 0),
    "to read a report": (MERGE, "GetObject", 0),
}
REACHED = [
    (what, kind)
    for what, (_, operation, _) in FILE_CALLS.items()
    for kind in FOR_GOOD
    if (operation, kind) != ("PutObject", "truncated")  # its answer is empty: it has no half
]


def put(client: Any, files: dict[str, bytes]) -> None:
    """There are these files in the bucket, and no others; those that are there stay."""
    listed = client.list_objects_v2(Bucket=BUCKET).get("Contents", ())
    there = {one["Key"]: one["ETag"].strip('"') for one in listed}
    for key in there.keys() - files.keys():
        client.delete_object(Bucket=BUCKET, Key=key)
    for key, body in files.items():
        if there.get(key) != md5(body).hexdigest():
            client.put_object(Bucket=BUCKET, Key=key, Body=body)


@dataclass
class Filed:
    """The server holds two users and a bucket, where an audit has left these files."""

    files: dict[str, bytes]


@pytest.fixture
def files(
    server: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: None, clients: Clients
) -> Cloud:
    """An account where an audit has left its files."""
    enter(server, monkeypatch, tmp_path)
    client = server.client("s3")
    if not isinstance(server.holds, Filed):
        server.reset()
        client.create_bucket(Bucket=BUCKET)
        for name in ("alice", "bob"):
            server.client("iam").create_user(UserName=name)
        put(client, {"accept.txt": b"mfa/bob # a robot\n"})
        with monkeypatch.context() as patch:
            share(patch, clients, keep=True)
            assert security_check.main(AUDIT) == 1
        server.holds = Filed(objects(client, BUCKET))
    share(monkeypatch, clients, keep=False)
    server.layer.faults = []
    put(client, server.holds.files)
    server.layer.calls.clear()
    return server


@pytest.mark.parametrize(("what", "kind"), REACHED)
def test_a_file_that_cannot_be_reached(
    files: Cloud,
    outcome: Outcome,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
    kind: str,
) -> None:
    arguments, operation, after = FILE_CALLS[what]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    capsys.readouterr()
    fault = replace(fault_for(f"s3:{operation}", FOR_GOOD[kind]), after=after)
    files.layer.faults = [fault]
    code = security_check.main(arguments)
    assert fault.hits
    (line,) = capsys.readouterr().err.splitlines()
    codes = {*CODES[kind], "NoResponse", "so it is not S3", "ResponseStreamingError"}
    assert any(one in line for one in codes), line
    if what == "to read a report":
        assert code == 3
        outcome("NOT CHECKED")
    else:
        assert code == 2
        outcome("kept elsewhere" if "put" in what else "could not start")
        kept = re.findall("the results are in ([^;]+)", line)
        # from the first file that cannot be put, no other one can; the state is not tried then
        files_lost = {"to put the workbook": ["x.xls", "x.json"], "to put the report": ["x.json"]}
        lost = files_lost.get(what, ["state.json"] if "put" in what else [])
        assert [Path(one).name for one in kept] == lost
        assert all(Path(one).stat().st_size for one in kept)


@pytest.mark.parametrize("kind", FOR_A_WHILE)
@pytest.mark.parametrize("what", FILE_CALLS)
def test_a_file_that_cannot_be_reached_for_a_while(
    files: Cloud, outcome: Outcome, what: str, kind: str
) -> None:
    arguments, operation, after = FILE_CALLS[what]
    fault = replace(fault_for(f"s3:{operation}", FOR_A_WHILE[kind]), after=after)
    files.layer.faults = [fault]
    assert security_check.main(arguments) == 1
    assert fault.hits == fault.times
    outcome("made good")
