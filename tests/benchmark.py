"""How fast is the script? `python tests/benchmark.py [small] [medium] [large] [organization]
[state] [--rounds N]`

Three programs audit an account that answers after 60 ms, with and without AWS's throttling:

    script  security_check.py, as a user runs it
    plain   the same calls, one after another, for every resource
    floor   the fewest calls that are needed, each as early as possible, 64 at once;
            nothing is evaluated, nothing is written

Each is a process of its own, and so is the account. Its answers are computed beforehand and then
repeated, so that moto's own slowness is not measured. Script and floor take turns, and the median
of three runs counts. On another machine only the ratios within one run mean something.

`organization` measures 20 small accounts and 8 medium ones, audited by one run and by a run for
each, one after another; the cost of --merge for each report; and the overview of 200 accounts
with 300 findings each.

`state` compares what 20 accounts and what a single one cost a run that shares a state of 5,000
accounts, without a call: the file is to be read and written once, not once an account.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parent.parent / "security_check.py"
DELAY = 0.06  # seconds a call
REGIONS = (
    "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-southeast-1",
    "ap-southeast-2", "ca-central-1", "eu-central-1", "eu-north-1", "eu-south-1", "eu-west-1",
    "eu-west-2", "eu-west-3", "sa-east-1", "us-east-1", "us-east-2", "us-west-1", "us-west-2",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    users: int
    buckets: int
    groups: int  # in each region


SIZES = {"small": Size(12, 10, 2), "medium": Size(200, 200, 20), "large": Size(2000, 1000, 200)}
FITS = {"users": (100, 200, 400), "buckets": (100, 200, 400), "groups": (50, 100, 200)}
OWN = "123456789012"  # moto's
ORGANIZATIONS = {"small": 20, "medium": 8}  # accounts
MAX_STATE_RATIO = 2
FIT_BASE = {"users": 12, "buckets": 10, "groups": 2}

# --- the account, in a process of its own -----------------------------------------------


def serve(pipe: Connection) -> None:
    from cloud import running

    with running(REGIONS) as cloud:
        pipe.send(cloud.environment)
        for order, argument in iter(pipe.recv, None):
            layer = cloud.layer
            if order == "fill":
                from example import fill_many

                cloud.reset()
                size, accounts = argument
                cloud.organize({number: number for number in accounts})
                for number in accounts:
                    sizes = (size.users, size.buckets, size.groups)
                    fill_many(cloud, REGIONS, *sizes, account=number)
                cloud.remember()
            elif order == "begin":
                layer.calls, layer.throttled = [], 0
                layer.delay, layer.buckets, layer.foreign = argument
            pipe.send((len(layer.calls), layer.throttled, allowed(layer.calls), processor_time()))


def processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def allowed(calls: Iterable[Any]) -> float:
    """The seconds that the throttling limits need at least for these calls. A call that is
    repeated because it was throttled counts once."""
    from cloud import LIMITS

    asked = {(c.service, c.account, c.region, c.operation, c.text) for c in calls}
    numbers: Counter[tuple[str, str, str, str]] = Counter()
    for service, account, region, operation, _ in asked:
        where = "" if service == "iam" else region
        numbers[service, account, where, operation if service == "cloudtrail" else ""] += 1
    limited = ((number, *LIMITS[key[0]]) for key, number in numbers.items() if key[0] in LIMITS)
    return max(0.0, max(((number - burst) / rate for number, rate, burst in limited), default=0))


class Server:
    """The process of the account, as the benchmark controls it."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.environment: dict[str, str] = pipe.recv()

    def order(self, order: str, argument: Any = None) -> tuple[int, int, float, float]:
        self.pipe.send((order, argument))
        answer: tuple[int, int, float, float] = self.pipe.recv()
        return answer


@contextlib.contextmanager
def server() -> Iterator[Server]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that an order fails if the process has died
    try:
        yield Server(ours)
    finally:
        process.kill()
        process.join()


# --- the other two programs --------------------------------------------------------------


def clients(**config: Any) -> Callable[..., Any]:
    import boto3
    from botocore.config import Config

    session: Any = boto3.Session(region_name="us-east-1")
    return functools.cache(
        lambda service, region="us-east-1": session.client(service, region, config=Config(**config))
    )


def pages(client: Any, operation: str, items: str, **params: Any) -> list[Any]:
    if not client.can_paginate(operation):
        return list(getattr(client, operation)(**params)[items])
    found = client.get_paginator(operation).paginate(**params)
    return [item for page in found for item in page[items]]


def plain() -> None:
    from botocore.exceptions import ClientError

    client = clients(retries={"mode": "standard"})
    client("sts").get_caller_identity()
    iam, s3 = client("iam"), client("s3")
    iam.list_account_aliases()
    regions = pages(client("ec2"), "describe_regions", "Regions")
    for region in (region["RegionName"] for region in regions):
        ec2, cloudtrail = client("ec2", region), client("cloudtrail", region)
        pages(ec2, "describe_instances", "Reservations")
        pages(ec2, "describe_security_groups", "SecurityGroups")
        pages(ec2, "describe_network_interfaces", "NetworkInterfaces")
        ec2.describe_vpc_block_public_access_options()
        for trail in cloudtrail.describe_trails()["trailList"]:
            home = client("cloudtrail", trail["HomeRegion"])
            home.get_trail_status(Name=trail["TrailARN"])
            home.get_event_selectors(TrailName=trail["TrailARN"])
    iam.get_account_summary()
    iam.generate_credential_report()
    iam.get_credential_report()  # it has root's last sign-in
    for user in (user["UserName"] for user in pages(iam, "list_users", "Users")):
        for key in pages(iam, "list_access_keys", "AccessKeyMetadata", UserName=user):
            iam.get_access_key_last_used(AccessKeyId=key["AccessKeyId"])
        pages(iam, "list_mfa_devices", "MFADevices", UserName=user)
        with contextlib.suppress(ClientError):
            iam.get_login_profile(UserName=user)
    with contextlib.suppress(ClientError):
        client("s3control").get_public_access_block(AccountId="123456789012")
    for bucket in pages(s3, "list_buckets", "Buckets"):
        here, name = client("s3", bucket["BucketRegion"]), bucket["Name"]
        here.get_bucket_acl(Bucket=name)
        with contextlib.suppress(ClientError):
            here.get_bucket_policy_status(Bucket=name)
        with contextlib.suppress(ClientError):
            here.get_public_access_block(Bucket=name)


def floor() -> None:
    """It knows for which resources `fill_many` makes a second call necessary: those whose name
    ends in 0."""
    from botocore.exceptions import ClientError

    threads = 64
    client = clients(
        retries={"mode": "adaptive", "total_max_attempts": 20}, max_pool_connections=threads
    )
    pool = ThreadPoolExecutor(threads)
    asked: list[Future[Any]] = []

    def answer(operation: Callable[..., Any], params: dict[str, Any]) -> Any:
        with contextlib.suppress(ClientError):
            return operation(**params)

    def ask(service: str, operation: str, region: str = "us-east-1", **params: Any) -> Future[Any]:
        asked.append(pool.submit(answer, getattr(client(service, region), operation), params))
        return asked[-1]

    regions = ask("ec2", "describe_regions")
    users = ask("iam", "list_users", MaxItems=1000)
    buckets = ask("s3", "list_buckets")
    ask("sts", "get_caller_identity")
    for operation in ("list_account_aliases", "get_account_summary"):
        ask("iam", operation)
    report = ask("iam", "generate_credential_report")
    names = [user["UserName"] for user in users.result()["Users"]]
    keys = {name: ask("iam", "list_access_keys", UserName=name) for name in names}
    for bucket in buckets.result()["Buckets"]:
        where = {"region": bucket["BucketRegion"], "Bucket": bucket["Name"]}
        ask("s3", "get_bucket_acl", **where)
        ask("s3", "get_bucket_policy_status", **where)
        if bucket["Name"].endswith("0"):
            ask("s3", "get_public_access_block", **where)
    report.result()
    ask("iam", "get_credential_report")
    ask("s3control", "get_public_access_block", AccountId="123456789012")
    trails = []
    for region in (region["RegionName"] for region in regions.result()["Regions"]):
        trails.append(ask("cloudtrail", "describe_trails", region))
        for operation in ("instances", "security_groups", "network_interfaces"):
            ask("ec2", f"describe_{operation}", region, MaxResults=1000)
        ask("ec2", "describe_vpc_block_public_access_options", region)
    for name in names:
        if name.endswith("0"):
            (key,) = keys[name].result()["AccessKeyMetadata"]
            ask("iam", "get_access_key_last_used", AccessKeyId=key["AccessKeyId"])
    found = [trail for one in trails for trail in one.result()["trailList"]]
    for arn, region in {trail["TrailARN"]: trail["HomeRegion"] for trail in found}.items():
        ask("cloudtrail", "get_trail_status", region, Name=arn)
    for future in asked:
        future.result()


def rows(number: int = 200_000) -> None:
    """A workbook of so many rows, without a call."""
    sys.path.insert(0, str(SCRIPT.parent))
    import security_check as script

    (acls,) = (check for check in script.CHECKS if check.name == "s3-acls")
    rest, grants = ("", "me", "Owner", "READ", ""), []
    for bucket in (f"bucket-{n}" for n in range(number)):
        cells: dict[str, Any] = dict(zip(acls.columns, (bucket, *rest), strict=True))
        grants.append(script.Row(bucket, "Owner/READ", cells, script.Message("Fine")))
    report = script.Report(
        account="123456789012",
        started=datetime.now(timezone.utc),
        auditor_arn="a",
        home_region="us-east-1",
        regions=["us-east-1"],
        results=[script.CheckResult(acls, grants)],
    )
    print(len(script.build_workbook(script.Overview.of_one(report))))


def shared_state(accounts: int = 5000, findings: int = 23, rounds: int = 3) -> float:
    """The processor time that the state costs a run over 20 accounts, in those of a run over one.

    The runs take turns, and the fastest of each counts.
    """
    sys.path.insert(0, str(SCRIPT.parent))
    import security_check as script

    today, check = f"{datetime.now(timezone.utc):%Y-%m-%d}", script.CHECKS[0].name
    result = "Lets the whole Internet reach SSH (22); no interface has it now"
    found = {
        f"{check}/eu-west-1/i-{n:017x}": script.KnownFinding(
            "2026-01-01", result, "eu-west-1", script.HIGH, resource=f"i-{n:017x}"
        )
        for n in range(findings)
    }
    change = script.StateChange(today, [check], found, set(), {}, 0, {}, script.MAX_KEY_AGE)
    numbers = [f"{n:012}" for n in range(accounts)]
    least: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.json")
        script.write_state_file(script.LocalFile(path), dict.fromkeys(numbers, change))
        options = script.parse_arguments(["--state", str(path)])
        for number in (1, 20) * rounds:
            run = script.Run(options)
            began = time.process_time()
            for account in numbers[-number:]:
                state = run.state(account)
                assert state and state.findings == found
                run.changes[account] = change
            assert not run.write_states()
            used = time.process_time() - began
            least[number] = min(used, least.get(number, used))
    ratio = least[20] / least[1]
    print(f"A state of {accounts:,} accounts with {findings} findings each:", end=" ")
    print(f"20 accounts take {ratio:.2f} times as long as one (at most {MAX_STATE_RATIO})")
    return ratio


def measure_alone(program: str, what: str) -> None:
    command = [sys.executable, str(Path(__file__).resolve()), "--program", program]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    memory = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    code = f", failed with {process.returncode}" if process.returncode else ""
    print(f"\n{what}: {time.monotonic() - started:.0f} s, {memory:.0f} MB{code}")


# --- measuring ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    program: str
    wall: float
    cpu: float
    memory: float
    calls: int
    throttled: int
    allowed: float
    served: float  # seconds of the server's processor
    code: int

    def line(self) -> str:
        failed = "  NOT CHECKED" if self.code == 3 else ""
        return (
            f"{self.program:7} {self.wall:7.2f} {self.cpu:7.2f} {self.memory:7.0f}"
            f" {self.calls:7,} {self.throttled:9,}{failed}"
        )


def measure(
    server: Server, program: str, delay: float, throttling: bool, *arguments: str,
    foreign: float = 0,
) -> Measured:  # fmt: skip
    own = [str(Path(__file__).resolve()), "--program", program]
    *_, before = server.order("begin", (delay, {} if throttling else None, foreign))
    with tempfile.TemporaryDirectory() as folder:
        script = [str(SCRIPT), *arguments]
        command = [sys.executable, *(script if program == "script" else own)]
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | server.environment, stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1, 3):
        raise SystemExit(f"{program} failed")
    calls, throttled, least, after = server.order("count")
    memory = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    cpu = used.ru_utime + used.ru_stime
    served, code = after - before, process.returncode
    return Measured(program, wall, cpu, memory, calls, throttled, least, served, code)


def fill(server: Server, size: Size, programs: Iterable[str]) -> None:
    server.order("fill", (size, [OWN]))
    for program in programs:  # so that all their answers are computed
        measure(server, program, 0, throttling=False)


def compare(server: Server, name: str, throttling: bool) -> None:
    """The median of three counts; plain takes a minute and more, so it is measured once."""
    print(f"\n{name}, throttling {'on' if throttling else 'off'}")
    print("           wall     CPU  memory   calls throttled")
    each: dict[str, list[Measured]] = defaultdict(list)
    for program in ("plain", *("floor", "script") * 3):
        each[program].append(measure(server, program, DELAY, throttling))
        print(each[program][-1].line(), flush=True)
    plain, floor, script = (
        sorted(each[program], key=lambda one: one.wall)[len(each[program]) // 2]
        for program in ("plain", "floor", "script")
    )
    print(f"script: {plain.wall / script.wall:.1f} times faster than plain", end="")
    print(f" with {script.calls / plain.calls:.2f} times its calls", end="")
    print(f", {script.wall / floor.wall:.2f} times the floor")
    if throttling and script.allowed > 1:
        ratio = script.wall / script.allowed
        print(
            f"        {ratio:.2f} times the {script.allowed:.1f} s that throttling costs its calls"
        )


def refused(server: Server) -> None:
    """A medium account, of whose calls a third is refused whatever we do."""
    print("\nforeign\n           wall     CPU  memory   calls throttled")
    fill(server, SIZES["medium"], ["script"])
    print(measure(server, "script", DELAY, throttling=True, foreign=1 / 3).line())


def organization(server: Server, name: str, number: int) -> None:
    """Accounts side by side, and the same one after another, as AWS throttles."""
    accounts = [OWN, *(f"{n:012}" for n in range(1, number))]
    server.order("fill", (SIZES[name], accounts))
    measure(server, "script", 0, False, "--organization")  # so that all answers are computed
    together = measure(server, "script", DELAY, True, "--organization")
    alone = [measure(server, "script", DELAY, True, "--account", one) for one in accounts]
    wall = sum(one.wall for one in alone)
    print(f"\n{number} {name} accounts, throttling on")
    print("           wall     CPU  memory   calls throttled")
    print(together.line())
    print(f"        {wall / together.wall:.1f} times faster than one after another", end="")
    print(f", {together.cpu / number:.2f} s of processor an account", end="")
    print(f", the server's {together.served:.1f} s")
    wall, cpu, memory, calls = (
        statistics.median(getattr(one, name) for one in alone)
        for name in ("wall", "cpu", "memory", "calls")
    )
    print(
        f"        one alone: {calls:.0f} calls, {wall:.1f} s,"
        f" of the processor {cpu:.2f} s, {memory:.0f} MB",
        flush=True,
    )


def merging(server: Server, numbers: tuple[int, ...] = (500, 1000, 2000)) -> None:
    """The overview of so many reports of a small account, read from files."""
    fill(server, SIZES["small"], [])
    with tempfile.TemporaryDirectory() as folder:
        one, runs = Path(folder, "one.json"), Path(folder, "runs")
        measure(server, "script", 0, False, "--json", str(one))
        text, measured = one.read_text(), []
        runs.mkdir()
        for number in numbers:
            for n in range(number):
                (runs / f"{n}.json").write_text(text.replace(OWN, f"{n:012}"))
            given = ("--merge", str(runs), "--output", str(Path(folder, "o.xls")), "--quiet")
            measured.append(measure(server, "script", 0, False, *given))
    (account,) = json.loads(text)["accounts"]
    rows = (row for result in account["results"] for row in result["rows"])
    shown = sum(row["status"] != "OK" for row in rows)
    cpu = statistics.linear_regression(numbers, [one.cpu for one in measured]).slope
    memory = statistics.linear_regression(numbers, [one.memory for one in measured]).slope
    print(
        f"\n--merge: {cpu * 1000:.1f} ms of the processor and {memory:.2f} MB a report"
        f" with {shown} rows that are not OK"
    )


def overview(accounts: int = 200, findings: int = 300) -> None:
    """The overview of so many accounts, without a call."""
    sys.path.insert(0, str(SCRIPT.parent))
    import security_check as script

    (acls,) = (check for check in script.CHECKS if check.name == "s3-acls")
    now, message = datetime.now(timezone.utc), script.Message("is public")
    reports = []
    for number in range(accounts):
        rows = []
        for bucket in (f"bucket-{number}-{n}" for n in range(findings)):
            cells: dict[str, Any] = dict.fromkeys(acls.columns, "x") | {"Bucket": bucket}
            rows.append(script.Row(bucket, "AllUsers/READ", cells, message, script.CRITICAL))
        report = script.Report(
            f"{number:012}",
            now,
            name=f"account {number}",
            home_region="us-east-1",
            results=[script.CheckResult(acls, rows)],
        )
        reports.append(report)
    whole = script.Overview(reports, now, 0, "o.xls", multi_account=True, scope="AWS accounts")
    assert len(script.build_workbook(whole)) > accounts * findings
    every = [row for report in reports for row in report.rows()]
    assert script.tally(every, with_new=False)["Critical"] == accounts * findings


def fit(server: Server) -> None:
    print("\nHow it grows, throttling off")
    for what, numbers in FITS.items():
        measured = []
        for number in numbers:
            fill(server, Size(**(FIT_BASE | {what: number})), ["script"])
            measured.append(measure(server, "script", DELAY, throttling=False))
        each = {"groups": "group a region"}.get(what, what[:-1])
        calls = statistics.linear_regression(numbers, [one.calls for one in measured])
        wall = statistics.linear_regression(numbers, [one.wall for one in measured])
        print(
            f"{calls.intercept:5.0f} + {calls.slope:.2f} calls a {each},"
            f" {wall.intercept:5.2f} s + {wall.slope * 1000:4.1f} ms a {each}",
            flush=True,
        )


PROGRAMS: dict[str, Callable[[], None]] = {
    "plain": plain,
    "floor": floor,
    "rows": rows,
    "overview": overview,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "sizes",
        nargs="*",
        metavar="SIZE",
        help="small, medium, large, foreign, organization, state",
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often to measure everything")
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        return PROGRAMS[options.program]()
    for name in list(os.environ):  # no real account, here and in all processes
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    if unknown := set(options.sizes) - {*SIZES, "organization", "foreign", "state"}:
        parser.error(f"no such size: {', '.join(sorted(unknown))}")
    if "state" in options.sizes and shared_state() > MAX_STATE_RATIO:
        raise SystemExit("the state is read or written more than once")
    if {*options.sizes} == {"state"}:
        return None
    print(f"{len(REGIONS)} regions, {DELAY * 1000:.0f} ms a call; seconds, megabytes")
    with server() as account:
        if "organization" in options.sizes:
            for name, number in ORGANIZATIONS.items():
                organization(account, name, number)
            merging(account)
        if "foreign" in options.sizes:
            refused(account)
        sizes = [name for name in options.sizes if name in SIZES]
        for name in sizes if options.sizes else ("small", "medium"):
            fill(account, SIZES[name], ("script", "plain", "floor"))
            for throttling in (False, True) * options.rounds:
                compare(account, name, throttling)
        if sizes or not options.sizes:
            fit(account)
    measure_alone("rows", "200,000 rows as a workbook")
    measure_alone("overview", "The overview of 200 accounts with 300 findings each")
    return None


if __name__ == "__main__":
    main()
