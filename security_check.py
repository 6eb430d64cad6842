#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["boto3>=1.44", "xlwt>=1.3"]
# ///
"""Audit an AWS account: six checks, one workbook, and nothing unread is called clean.

The file reads from top to bottom; what is used stands above its use:

    constants   what counts as old and as throttled; severities and statuses
    controls    of AWS Security Hub, and the numbers of other standards
    rows        what a check yields: facts, not words; and how a check is declared
    account     the only code that talks to AWS
    targets     what a check is run over: regions, users, buckets
    checks      six generators, (account, target) -> rows, each below its rules
    runner      the only place that survives a failure: the failure becomes a row
    files       how a file, here or in S3, is read and written without harm
    months      what was accepted, what is new since last time, what is gone
    report      an audit of one account, whole, as plain data; as JSON and back
    words       what people read of reports, and the table for a terminal
    workbook    reports made into sheets, and CSV; it knows nothing of AWS calls
    streams     what is said on standard output and standard error
    arguments   the command line
    access      sessions, and how each account is entered
    run         what was asked for, and what can be wrong before the first audit
    audits      the accounts, side by side
    merging     reports that others wrote, made into one overview
    main        a run from its beginning to its end; the function for AWS Lambda

A seventh check is one function under `@check`; nothing else changes.
Severities are those that AWS Security Hub publishes for the control named beside
each rule; where no control is named, the rule and its severity are ours.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import functools
import gc
import importlib.util
import io
import json
import logging
import math
import mimetypes
import os
import re
import secrets
import shlex
import signal
import struct
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from ipaddress import collapse_addresses, ip_address, ip_network
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TextIO, TypeVar
from unicodedata import combining, east_asian_width
from urllib.parse import quote

if TYPE_CHECKING:  # at run time imported late, so that --help and bad arguments answer at once
    import boto3
    import xlwt

__version__ = "1.0"

# === constants ========================================================================

MAX_KEY_AGE = 90  # days; Security Hub IAM.3
SOON = timedelta(days=31)  # a key that falls due before the next monthly run

CRITICAL, HIGH, MEDIUM, LOW = SEVERITIES = ("Critical", "High", "Medium", "Low")
ACTIVE = "ACTIVE"  # of an account in its organization, AWS's word
OK, FINDING, NOT_CHECKED, ACCEPTED = "OK", "FINDING", "NOT CHECKED", "ACCEPTED"
NEW = "New"
MEND = "To mend"
GRADES = (*SEVERITIES, NOT_CHECKED, ACCEPTED, OK)  # the order of rows on a sheet

ROOT = "<root_account>"  # as in the credential report; no IAM user name can contain "<"
EVERYONE = "http://acs.amazonaws.com/groups/global/AllUsers"
ANY_AWS_ACCOUNT = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
LOG_DELIVERY = "http://acs.amazonaws.com/groups/s3/LogDelivery"

# Time-outs in seconds. A call is tried ATTEMPTS times when AWS throttles or fails, but
# only twice when nothing answers: a silent region must not hold up the run.
CONNECT_TIMEOUT, READ_TIMEOUT = 5, 10
ATTEMPTS = 8
SILENT_CALLS = 3
FIRST_GAP = 0.05  # between calls, once AWS has throttled
THREADS = 32
THREADS_IAM = THREADS_AHEAD = 8  # IAM throttles the account as a whole
ACCOUNTS_AT_ONCE = 8  # AWS throttles each by itself; memory and sockets set the limit
RUN_LASTS = timedelta(days=1)  # at most, from the first account to the last
ROLE = "security-check"  # to assume in the accounts of an organization

REPORT_POLLS, REPORT_PAUSE = 30, 2  # a minute for the credential report

MAX_ROWS, MAX_TEXT = 65_536, 32_767  # what the .xls format can hold

PASSED, FAILED = "PASSED", "FAILED"  # verdicts on a control, beside NOT CHECKED and ACCEPTED

EXPIRED = {
    *("ExpiredToken", "ExpiredTokenException", "RequestExpired", "CredentialRetrievalError"),
    *("LoginRefreshRequired", "LoginTokenLoadError", "SSOTokenLoadError", "TokenRetrievalError"),
    "UnauthorizedSSOTokenError",
}
THROTTLED = {"Throttling", "ThrottlingException", "RequestLimitExceeded", "SlowDown"}
GONE = {"NoSuchEntity", "NoSuchBucket"}  # deleted between listing and asking
REFUSED = {
    *("AuthFailure", "InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch"),
    "UnrecognizedClientException",
}

READS = ("AssumeRole", "Describe", "Generate", "Get", "Head", "List")  # names begin so

# The IAM action behind a call, where S3 gives it another name.
ACTIONS = {
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "s3control:GetPublicAccessBlock": "s3:GetAccountPublicAccessBlock",
}

# === controls of AWS Security Hub =====================================================


class Control(NamedTuple):
    """What a control asks, in our words, and the numbers that AWS maps to it in the CIS AWS
    Foundations Benchmark 5.0.0 and 3.0.0 and in PCI DSS 4.0.1; blank where no page says one.
    A control `of` root or of the account is decided once, not for each resource."""

    severity: str
    asks: str
    cis_5: str = ""
    cis_3: str = ""
    pci: str = ""
    of: str = ""


HUB = "https://docs.aws.amazon.com/securityhub/latest/userguide/cis-aws-foundations-benchmark.html"
# Severities and numbers are from the pages ec2-, iam-, cloudtrail- and s3-controls.html beside
# HUB. HUB has the CIS numbers again; pci-standard.html says which controls belong to PCI DSS.
CONTROLS = {
    "EC2.13": Control(HIGH, "SSH (22) is closed to the Internet", pci="1.3.1"),
    "EC2.14": Control(HIGH, "RDP (3389) is closed to the Internet", pci="1.3.1"),
    "EC2.18": Control(HIGH, "Only TCP 80 and 443 are open to the Internet"),
    "EC2.19": Control(CRITICAL, "No high-risk port is open to the Internet"),
    "EC2.53": Control(HIGH, "SSH and RDP are closed to IPv4", "5.3", "5.2", "1.3.1"),
    "EC2.54": Control(HIGH, "SSH and RDP are closed to IPv6", "5.4", "5.3", "1.3.1"),
    "IAM.3": Control(
        MEDIUM, "No active access key is older than 90 days", "1.13", "1.14", "8.3.9, 8.6.3"
    ),
    "IAM.4": Control(CRITICAL, "Root has no access key", "1.3", "1.4", of=ROOT),
    "IAM.5": Control(MEDIUM, "Who has a console password has MFA", "1.9", "1.10", "8.4.2"),
    "IAM.9": Control(CRITICAL, "Root has MFA", "1.4", "1.5", "8.4.2", of=ROOT),
    "IAM.19": Control(MEDIUM, "Every user has MFA", pci="8.4.2"),
    "CloudTrail.1": Control(
        HIGH, "A multi-region trail records all management events", "3.1", "3.1", of="account"
    ),
    "CloudTrail.4": Control(LOW, "Log files of every trail are validated", "3.2", "3.2", "10.3.2"),
    "S3.2": Control(CRITICAL, "No bucket may be read by the public"),
    "S3.3": Control(CRITICAL, "No bucket may be written by the public"),
    "S3.12": Control(MEDIUM, "No bucket's ACL lets in other users"),
}
VERDICTS = (FAILED, NOT_CHECKED, ACCEPTED, PASSED)  # the worst first

# === rows =============================================================================

Cell = str | int | bool | datetime | None
Mend = tuple[str, ...] | str  # the words of an AWS CLI command, or why there is none
Brief = tuple[str, str, str]  # a sentence that follows a name: start, what, end


class Command(str):
    """A command for a POSIX shell, whole and quoted."""

    __slots__ = ()


class Verdict(NamedTuple):
    """What a row means for a Security Hub control: that a resource FAILED it, or that what was
    read does not decide it, NOT CHECKED."""

    control: str
    resource: str
    word: str = FAILED


class CannotRun(Exception):
    """Why there is no workbook, in one line for the administrator."""


@dataclass(unsafe_hash=True)
class Unanswered(Exception):
    """A question that AWS did not answer: the error code, the call, and what else is known."""

    code: str
    service: str = ""
    operation: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {' '.join(filter(None, (self.service, self.operation, self.detail)))}"

    @property
    def permission(self) -> str:
        """The IAM action whose lack this may be; blank if the call was not denied."""
        action = f"{self.service}:{self.operation}"
        denied = "Denied" in self.code or "Unauthorized" in self.code
        return ACTIONS.get(action, action) if denied else ""


@dataclass(frozen=True)
class Acceptance:
    """A decision to live with findings: IDs like `pattern`, up to and with the day `until`.
    With an account's number in front the pattern is for that account only."""

    pattern: str
    until: str
    reason: str

    def is_about(self, number: str, id: str) -> bool:
        return any(fnmatchcase(name, self.pattern) for name in (id, f"{number}/{id}"))


@dataclass(frozen=True)
class Row:
    """One line of a sheet, as facts.

    `part` is what of the target the row is about; a blank one is the target itself. `cells`
    are the check's own columns by name. A row with a `severity` is a finding, one with a
    `gap` is what AWS did not let us look at; `mend` is what a person may run. `verdicts` are
    on the controls themselves, which our rules may be stricter or broader than. `result` is a
    sentence; `brief` says the same where a name stands in front, and rows that differ in its
    middle alone can be told together. The last four are known once a state or decisions are:
    `first_seen` is a day, `lapsed` says that the acceptance is over.
    """

    target: str
    part: str
    cells: dict[str, Cell]
    result: str = ""
    severity: str = ""
    control: str = ""
    gap: Unanswered | None = None
    brief: Brief = field(default=("", "", ""), compare=False)  # it follows from the rest,
    mend: Mend = field(default="", compare=False)  # as do these
    verdicts: tuple[Verdict, ...] = field(default=(), compare=False)
    first_seen: str = ""
    new: bool = False
    acceptance: Acceptance | None = None
    lapsed: bool = False

    @property
    def id(self) -> str:
        """What names the row on its sheet from run to run."""
        part = self.part or ("not-checked" if self.gap else "")
        return f"{self.target}/{part}" if part else self.target

    @property
    def status(self) -> str:
        if self.acceptance and not self.lapsed:
            return ACCEPTED
        return NOT_CHECKED if self.gap else FINDING if self.severity else OK

    @property
    def grade(self) -> str:
        """The severity of a finding, else the status: one of GRADES."""
        return self.severity if self.status == FINDING else self.status

    def ending(self, end: str, **facts: Any) -> Row:
        """The row with other facts, and with this at the end of what it says."""
        start, what, _ = self.brief
        return replace(self, result=f"{self.result}{end}", brief=(start, what, end), **facts)


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def in_words(names: Iterable[str], most: int = 4) -> str:
    """`a`, `a and b`, `a, b and c`; of many only the first."""
    distinct = [*dict.fromkeys(names)]
    if len(distinct) > most:
        distinct[most - 1 :] = [f"{len(distinct) - most + 1:,} more"]
    return " and ".join(filter(None, (", ".join(distinct[:-1]), *distinct[-1:])))


def yes_no(fact: Any) -> str:
    return "yes" if fact else "no"


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def cli_option(name: str, value: str) -> tuple[str, ...]:
    """An option of the AWS CLI, whose value is never taken for another option."""
    return (f"--{name}={value}",) if value.startswith("-") else (f"--{name}", value)


# May return how many things were looked at, be it by control.
Rows = Generator[Row, None, Counter[str] | int | None]


def gap(target: str, part: str, cells: dict[str, Cell], why: Unanswered) -> Row:
    """The row for what AWS did not let us look at. It keeps a copy of `why`, because the
    original holds on to the account through its traceback."""
    return Row(target, part, cells, gap=replace(why))


@dataclass(frozen=True, eq=False)
class Check:
    """A check and its sheet.

    `thing` are the columns that name what a row is about, as people name it first, and `kind`
    is what a row of it is called. `controls` are those of Security Hub that it decides.
    `about` says what the sheet shows and what to do about a finding, `docs` is AWS's page on
    that. `nothing` is what an empty sheet says; it may use {targets} and {looked_at}, the
    numbers looked at. `links` are pages of the AWS console by column; they may use the other
    columns of the row. `ahead` are questions, asked once an audit, that are put while earlier
    checks run: what all targets wait for, and the first question about each.
    """

    title: str
    over: Callable[[Account], Iterable[str]]
    columns: tuple[str, ...]
    about: str
    docs: str
    nothing: str
    rows: Callable[[Account, str], Rows]
    thing: tuple[str, ...] = ()
    kind: str = "row"
    controls: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    ahead: tuple[Callable[[Account], Any], ...] = ()
    threads: int = THREADS

    @property
    def name(self) -> str:
        return self.title.lower().replace(" ", "-")

    def names(self, row: Row) -> list[str]:
        """What the row is about: its name first, what else identifies it behind."""
        cells = (row.cells.get(column) for column in self.thing or self.columns[:1])
        return ["root" if cell == ROOT else str(cell) for cell in cells if cell]

    @property
    def targets(self) -> str:
        """What it is run over, in a word: regions, users, buckets."""
        return self.over.__name__


CHECKS: list[Check] = []
Rule = TypeVar("Rule", bound=Callable[..., Any])


def check(title: str, **sheet: Any) -> Callable[[Rule], Rule]:
    """Declare a check: a generator (account, target) -> rows, which may return how many
    things it looked at, be it by control. Definition order is run order is sheet order."""

    def register(rows: Rule) -> Rule:
        CHECKS.append(Check(title, rows=rows, **sheet))
        return rows

    return register


# === account ==========================================================================


class Call(NamedTuple):
    """A call to AWS, but for its parameters."""

    service: str
    operation: str
    region: str

    def failed(self, code: str, detail: str = "") -> Unanswered:
        return Unanswered(code, self.service, self.operation, detail)


class Answer(dict[str, Any]):
    """What AWS answered. A field that AWS always sends and that is not there, here or in what
    is nested here, means that something else answered (a proxy, a sign-in page)."""

    def __init__(self, answer: dict[str, Any], call: Call) -> None:
        super().__init__(answer)
        self.call = call

    def __getitem__(self, field: str) -> Any:
        value = super().__getitem__(field)
        return Answer(value, self.call) if isinstance(value, dict) else value

    def __missing__(self, field: str) -> Any:
        raise self.call.failed("MalformedAnswer", f"without {field}")


class Pace:
    """How fast one client may ask: at will until AWS throttles, then a call every `gap`
    seconds, a little sooner after each answer and later after each refusal.

    botocore's `adaptive` retries count every refusal of a volley, and then crawl for seconds.
    """

    def __init__(self) -> None:
        self.gap = self.next = self.slowed = 0.0
        self.lock = threading.Lock()

    def wait(self, **_: Any) -> None:
        """Before a call is sent."""
        with self.lock:
            now = time.monotonic()
            self.next = max(now, self.next + self.gap)
            pause = self.next - now
        time.sleep(pause)

    def learn(self, response: tuple[Any, dict[str, Any]] | None, **_: Any) -> None:
        """After an answer, a refusal, or neither."""
        code = response[1].get("Error", {}).get("Code") if response else None
        with self.lock:
            now = time.monotonic()
            if code not in THROTTLED:
                self.gap *= 0.995
            elif now - self.slowed > 1:  # calls that are refused together slow us down once
                self.gap, self.slowed = max(self.gap * 1.2, FIRST_GAP), now


MAKING = threading.Lock()  # of clients: accounts share what botocore has read of its models
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class Account:
    """The account under audit, and the only way to AWS. `now` is the one moment that the
    audit calls now; `only` limits the regions; `max_key_age` is in days."""

    session: boto3.Session
    now: datetime
    only: Collection[str] = ()
    max_key_age: int = MAX_KEY_AGE
    number: str = ""  # known once AWS has said who asks, as is the ARN
    arn: str = ""
    clients: dict[tuple[str, str], Any] = field(default_factory=dict)
    answers: dict[Any, Future[Any]] = field(default_factory=dict)
    silent: Counter[Call | str] = field(default_factory=Counter)  # by call, and by region
    expired: Unanswered | None = None
    lock: Any = field(default_factory=threading.RLock)

    @functools.cached_property
    def region(self) -> str:
        elsewhere = [region for region in self.only if region.startswith(("cn-", "us-gov-"))]
        return self.session.region_name or [*elsewhere, "us-east-1"][0]

    def ask(
        self, service: str, operation: str, region: str = "",
        absent: Collection[str] = (), **params: Any,
    ) -> Answer:  # fmt: skip
        """One answer of AWS. An error code in `absent` is an answer too: an empty one."""
        call = Call(service, operation, region or self.region)
        pages = self._pages(call, params)
        try:
            return Answer(self._answered(call, lambda: read_whole(next(pages))), call)
        except Unanswered as error:
            if error.code not in absent:
                raise
            return Answer({}, call)

    def fetch(
        self, service: str, operation: str, items: str, region: str = "",
        page_size: int = 1000, **params: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """All the items of all pages, streamed."""
        call = Call(service, operation, region or self.region)
        pages = self._pages(call, params, page_size)
        while page := self._answered(call, lambda: next(pages, None)):
            # S3 counts what it lists, and leaves out an empty list
            yield from page.get(items, ()) if "KeyCount" in page else Answer(page, call)[items]

    def _pages(self, call: Call, params: dict[str, Any], size: int = 0) -> Iterator[dict[str, Any]]:
        """The answers to a call, one page after another if a size is asked for."""
        from botocore import xform_name

        client, name = self.client(call.service, call.region), xform_name(call.operation)
        if size and client.can_paginate(name):
            config = {"PageSize": size}
            yield from client.get_paginator(name).paginate(**params, PaginationConfig=config)
            return
        yield (page := getattr(client, name)(**params))
        while token := page.get("NextToken"):  # botocore does not know how to page everything
            yield (page := getattr(client, name)(**params, NextToken=token))

    def _answered(self, call: Call, ask: Callable[[], T]) -> T:
        """The one place where a failure to reach AWS, or a refusal, becomes Unanswered.

        Whatever is raised here comes from botocore, whose parsers raise all sorts of errors
        at what is not an answer of AWS.
        """
        if self.expired:
            raise self.expired
        if self.silent[call] >= SILENT_CALLS:
            raise call.failed("NoAnswer", f"(asked {SILENT_CALLS} times)")
        try:
            answer = ask()
        except Exception as error:
            raise self._failure(error, call) from error
        self.silent[call] = self.silent[call.region] = 0
        return answer

    def _failure(self, error: Exception, call: Call) -> Unanswered:
        from botocore.exceptions import BotoCoreError, ClientError

        code = type(error).__name__ if isinstance(error, BotoCoreError) else "MalformedAnswer"
        if isinstance(error, ClientError):
            code = error.response["Error"]["Code"]
        failure = call.failed(code)
        with self.lock:
            if is_silence(error):
                self.silent.update([call, call.region])
            if code in EXPIRED:
                self.expired = failure = self.expired or failure
        return failure

    def client(self, service: str, region: str) -> Any:
        """The client for a service in a region, made once. Making one is not thread-safe."""
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=THREADS,
        )
        with self.lock, MAKING:
            if (service, region) not in self.clients:
                make: Callable[..., Any] = self.session.client
                client = self.clients[service, region] = make(service, region, config=config)
                pace, events = Pace(), client.meta.events
                give_up = functools.partial(self._give_up_on_silence, region)
                events.register("before-send", pace.wait)
                events.register("needs-retry", pace.learn)
                events.register_first("needs-retry", give_up)
            return self.clients[service, region]

    def close(self) -> None:
        """Let go of the connections; nothing is asked after this, by whatever thread."""
        with self.lock:
            self.expired = Unanswered("Closed")
            for client in self.clients.values():
                client.close()
            self.clients.clear()
            self.answers.clear()

    def _give_up_on_silence(
        self, region: str, attempts: int, caught_exception: Exception | None, **_: Any
    ) -> None:
        """Ask twice where nothing answers, once where the region was silent before.

        botocore has one number of attempts for all failures; raising is how to leave early.
        """
        silent = is_silence(caught_exception)
        if caught_exception and silent and (attempts > 1 or self.silent[region]):
            raise caught_exception


def read_whole(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with what else there was to read of it, as S3 sends objects."""
    return answer | {"Body": answer["Body"].read()} if "Body" in answer else answer


def is_silence(error: Exception | None) -> bool:
    from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

    return isinstance(error, (ConnectTimeoutError, ReadTimeoutError))


def once(question: Callable[Concatenate[Account, P], T]) -> Callable[Concatenate[Account, P], T]:
    """Put a question once an audit, whatever number of threads want to know. A failure is
    an answer too, and the same for all. A question must not wait for another check's."""

    @functools.wraps(question)
    def asked(aws: Account, *args: P.args, **kwargs: P.kwargs) -> T:
        with aws.lock:
            first = (key := (question, args)) not in aws.answers
            answer = aws.answers.setdefault(key, Future())
        if first:
            try:
                answer.set_result(question(aws, *args, **kwargs))
            except BaseException as error:
                answer.set_exception(error)
        known: T = answer.result()
        return known

    return asked  # type: ignore[return-value]


def every(
    question: Callable[[Account, str], Any], targets: Callable[[Account], Iterable[str]]
) -> Callable[[Account], None]:
    """The question about every target, a few at a time, as one to be put ahead."""

    def asked(aws: Account) -> None:
        with ThreadPoolExecutor(THREADS_AHEAD) as pool:
            for target in targets(aws):
                pool.submit(question, aws, target)

    return asked


def answer_or_gap(question: Callable[[Account], T], aws: Account) -> T | Unanswered:
    """What AWS answers, or what it did not answer."""
    try:
        return question(aws)
    except Unanswered as error:
        return replace(error)


# === targets ==========================================================================


@once
def enabled_regions(aws: Account) -> list[str]:
    return sorted(region["RegionName"] for region in aws.ask("ec2", "DescribeRegions")["Regions"])


def regions(aws: Account) -> list[str]:
    """The regions that are enabled in the account, or of these the ones asked for."""
    return sorted(aws.only) or enabled_regions(aws)


@once
def user_list(aws: Account) -> dict[str, dict[str, Any]]:
    return {user["UserName"]: user for user in aws.fetch("iam", "ListUsers", "Users")}


def users(aws: Account) -> Iterator[str]:
    """The names of all users, root first."""
    yield ROOT
    yield from user_list(aws)


@once
def buckets(aws: Account) -> dict[str, str]:
    """The region of every bucket by name, blank where ListBuckets does not tell it."""
    found = aws.fetch("s3", "ListBuckets", "Buckets")
    return {bucket["Name"]: bucket.get("BucketRegion", "") for bucket in found}


@once
def account_aliases(aws: Account) -> list[str]:
    return list(aws.fetch("iam", "ListAccountAliases", "AccountAliases"))


# === check 1: EC2-Classic =============================================================


def is_classic(instance: dict[str, Any]) -> bool:
    """Whether an instance stands outside a VPC.

    An instance that is going or gone has lost its VpcId too:
    https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Instance.html
    """
    leaving = instance["State"]["Name"] in ("shutting-down", "terminated")
    return not instance.get("VpcId") and not leaving


def name_tag(instance: dict[str, Any]) -> str:
    tags = instance.get("Tags") or ()
    return next((tag["Value"] for tag in tags if tag["Key"] == "Name"), "")


@check(
    "EC2-Classic",
    over=regions,
    columns=("Region", "Instance ID", "Name", "State", "Launched"),
    thing=("Name", "Instance ID", "Region"),
    about="Instances outside a VPC. Move each into a VPC: nothing isolates it from other tenants.",
    docs="https://docs.aws.amazon.com/vpc/latest/userguide/what-is-amazon-vpc.html",
    links={"Instance ID": "ec2/home?region={Region}#InstanceDetails:instanceId={Instance ID}"},
    nothing="No instance outside a VPC among {looked_at:,} in {targets:,} regions",
)
def check_ec2_classic(aws: Account, region: str) -> Rows:
    """Instances outside a VPC. The severity is ours: AWS retired EC2-Classic."""
    instances = 0
    for reservation in aws.fetch(
        "ec2", "DescribeInstances", "Reservations", region, IncludeManagedResources=True
    ):
        instances += len(reservation["Instances"])
        for instance in filter(is_classic, reservation["Instances"]):
            id, name, state = instance["InstanceId"], name_tag(instance), instance["State"]["Name"]
            cells: dict[str, Cell] = {
                "Region": region,
                "Instance ID": id,
                "Name": name,
                "State": state,
                "Launched": instance["LaunchTime"],
            }
            words, mend = f"is {state} outside a VPC", "move it by hand"
            result = f"{name or id} {words}"
            yield Row(region, id, cells, result, HIGH, brief=(words, "", ""), mend=mend)
    return instances


# === check 2: security groups =========================================================

# Addresses that no host on the Internet has; what is left of IPv6 is 2000::/3.
# https://www.iana.org/assignments/iana-ipv4-special-registry
NOT_INTERNET: list[Any] = [
    *map(ip_network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8")),
    *map(ip_network, ("169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24")),
    *map(ip_network, ("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24")),
    *map(ip_network, ("224.0.0.0/3", "::/3", "4000::/2", "8000::/1")),
]
WIDE = {4: 7, 6: 12}  # prefix lengths; IANA gives a whole regional registry an IPv6 /12

# Security Hub EC2.19, and what it allows in EC2.18.
HIGH_RISK_PORTS = {
    20: "FTP data", 21: "FTP", 22: "SSH", 23: "Telnet", 25: "SMTP", 110: "POP3", 135: "RPC",
    143: "IMAP", 445: "SMB", 1433: "SQL Server", 1434: "SQL Server", 3000: "web development",
    3306: "MySQL", 3389: "RDP", 4333: "mSQL", 5000: "web development", 5432: "PostgreSQL",
    5500: "VNC", 5601: "OpenSearch Dashboards", 8080: "HTTP proxy", 8088: "HTTP", 8888: "HTTP",
    9200: "OpenSearch", 9300: "OpenSearch",
}  # fmt: skip
WEB_PORTS = {80: "HTTP", 443: "HTTPS"}
PORT_NAMES = HIGH_RISK_PORTS | WEB_PORTS

# https://www.iana.org/assignments/protocol-numbers
PROTOCOLS = {
    "-1": "ALL", "1": "ICMP", "2": "IGMP", "4": "IPv4", "6": "TCP", "17": "UDP", "41": "IPv6",
    "47": "GRE", "50": "ESP", "51": "AH", "58": "ICMPv6", "89": "OSPF", "112": "VRRP",
    "132": "SCTP",
}  # fmt: skip


def loose_network(cidr: str) -> Any:
    """The network of a CIDR. Host bits do not count: AWS reads 10.0.0.0/0 as 0.0.0.0/0."""
    return ip_network(cidr, strict=False)


def whole_internet(cidrs: Iterable[str]) -> list[str]:
    """Which of 0.0.0.0/0 and ::/0 the CIDRs cover together, be it in pieces."""
    networks: list[Any] = [*map(loose_network, cidrs), *NOT_INTERNET]
    families = ([net for net in networks if net.version == version] for version in (4, 6))
    covered = (net for family in families for net in collapse_addresses(family))
    return [str(net) for net in covered if net.prefixlen == 0]


def is_private(network: Any) -> bool:
    """Whether no host on the Internet has an address of the network."""
    same = (other for other in NOT_INTERNET if other.version == network.version)
    return any(network.subnet_of(other) for other in same)


def wide_sources(cidrs: Iterable[str]) -> list[str]:
    """The public CIDRs that are too wide to mean somebody in particular."""
    networks = map(loose_network, cidrs)
    wide = (network for network in networks if network.prefixlen <= WIDE[network.version])
    return [str(network) for network in wide if not is_private(network)]


def protocol_name(protocol: str) -> str:
    return PROTOCOLS.get(protocol) or ("ICMPv6" if protocol == "icmpv6" else protocol.upper())


def opened_ports(protocol: str, first: int | None, last: int | None) -> range:
    """The ports that a rule opens: none where the protocol (by name) has no ports."""
    if protocol not in ("ALL", "TCP", "UDP"):
        return range(0)
    if protocol == "ALL" or first is None or first == -1:
        return range(65536)
    return range(first, (first if last is None else last) + 1)


def port_words(protocol: str, first: int | None, last: int | None) -> str:
    """`22 (SSH)`, `8000-9000`, `ALL`; ICMP has types and codes in their place."""
    if protocol.startswith("ICMP"):
        if first in (None, -1):
            return "ALL types"
        return f"type {first}" if last in (None, -1) else f"type {first} code {last}"
    ports = opened_ports(protocol, first, last)
    if len(ports) in (0, 65536):
        return "ALL"
    if len(ports) > 1:
        return f"{ports[0]}-{ports[-1]}"
    return f"{ports[0]} ({PORT_NAMES[ports[0]]})" if ports[0] in PORT_NAMES else str(ports[0])


def port_service(protocol: str, first: int | None, last: int | None) -> str:
    """What a rule opens, as people name it: `SSH (22)`, `TCP 8000-9000`, `all ports`."""
    ports = port_words(protocol, first, last)
    number, _, name = ports.rstrip(")").partition(" (")
    if protocol == "ALL":
        return "all ports"
    if protocol in ("TCP", "UDP"):
        named = f"{name} ({number})" if name and protocol == "TCP" else f"{protocol} {number}"
        return f"all {protocol} ports" if ports == "ALL" else named
    return protocol if ports.startswith("ALL") else f"{protocol} {ports}"


def internet_words(open_to: Sequence[str], via: Sequence[str]) -> str:
    """Whom a rule lets in, and through which prefix lists."""
    through = f" through {', '.join(via)}" if via else ""
    if not whole_internet(open_to):
        return f"{in_words(open_to)}, a large part of the Internet{through}"
    return f"the whole {'IPv6 ' if open_to == ['::/0'] else ''}Internet{through}"


def port_severity(protocol: str, ports: range) -> tuple[str, str]:
    """Severity and control of ports that are open to the whole Internet."""
    if any(port in ports for port in HIGH_RISK_PORTS):
        return CRITICAL, "EC2.19"
    web = protocol == "TCP" and len(ports) == 1 and ports[0] in WEB_PORTS
    if web or protocol.startswith("ICMP"):
        return LOW, ""
    return HIGH, "EC2.18"


GROUP_CONTROLS = ("EC2.13", "EC2.14", "EC2.18", "EC2.19", "EC2.53", "EC2.54")


def failed_controls(protocol: str, ports: range, cidrs: Iterable[str]) -> list[str]:
    """The controls that a rule with these sources fails. They know 0.0.0.0/0 and ::/0, be they
    in a prefix list, but not an Internet in pieces; and neither blocks nor who uses a group."""
    whole = [network for network in map(loose_network, cidrs) if network.prefixlen == 0]
    if not whole:
        return []
    web = protocol == "TCP" and all(port in WEB_PORTS for port in ports)
    remote = 22 in ports or 3389 in ports
    failed = {
        "EC2.13": 22 in ports,
        "EC2.14": 3389 in ports,
        "EC2.18": bool(ports) and not web,
        "EC2.19": any(port in ports for port in HIGH_RISK_PORTS),
        "EC2.53": remote and any(network.version == 4 for network in whole),
        "EC2.54": remote and any(network.version == 6 for network in whole),
    }
    return [control for control, fails in failed.items() if fails]


def lowered(severity: str) -> str:
    return SEVERITIES[min(SEVERITIES.index(severity) + 1, 3)]


@once
def prefix_list(aws: Account, region: str, id: str) -> list[str]:
    call = "GetManagedPrefixListEntries"
    entries = aws.fetch("ec2", call, "Entries", region, page_size=100, PrefixListId=id)
    return [entry["Cidr"] for entry in entries]


def public_sources(cidrs: list[str]) -> list[str]:
    """Which CIDRs of a rule open it: the wide ones, or all of the Internet's if it is open
    in small pieces."""
    wide = [cidr for cidr in cidrs if wide_sources([cidr])]
    if not whole_internet(cidr for cidr in cidrs if cidr not in wide):
        return wide
    return [cidr for cidr in cidrs if not is_private(loose_network(cidr))]


SOURCES = {"IpRanges": "CidrIp", "Ipv6Ranges": "CidrIpv6", "PrefixListIds": "PrefixListId"}
RuleKey = tuple[str, int | None, int | None]  # protocol by name, first and last port


def rule_key(rule: dict[str, Any]) -> RuleKey:
    return protocol_name(rule["IpProtocol"]), rule.get("FromPort"), rule.get("ToPort")


def rules(group: dict[str, Any]) -> dict[RuleKey, list[str]]:
    """The sources of a group's rules, CIDRs and prefix lists, by protocol and ports."""
    merged: dict[RuleKey, list[str]] = defaultdict(list)
    for rule in group["IpPermissions"]:
        for kind, name in SOURCES.items():
            merged[rule_key(rule)] += [source[name] for source in rule.get(kind) or ()]
    return merged


def closing(group: dict[str, Any], key: tuple[Any, ...], public: Collection[str]) -> Mend:
    """The command that takes the public sources, and no others, out of rules with this key."""
    parts = []
    for rule in group["IpPermissions"]:
        part = {name: rule[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in rule}
        for kind, name in SOURCES.items():
            sources = [{name: one[name]} for one in rule.get(kind) or () if one[name] in public]
            part |= {kind: sources} if sources else {}
        if rule_key(rule) == key and part.keys() & SOURCES.keys():
            parts.append(part)
    call, group_id = "revoke-security-group-ingress", group["GroupId"]
    return ("ec2", call, "--group-id", group_id, "--ip-permissions", compact(parts))


def opened_to(
    aws: Account, region: str, cidrs: list[str], lists: Collection[str]
) -> tuple[list[str], list[str], Unanswered | None]:
    """What of the Internet the sources of a rule cover together, all of it or wide ranges; the
    prefix lists that have a part in it; and the failure to read one, if it may cover more."""
    if found := whole_internet(cidrs):
        return found, [], None
    entries, missing = dict[str, list[str]](), None
    for id in lists:
        try:
            entries[id] = prefix_list(aws, region, id)
        except Unanswered as error:
            missing = error
    sources = [*cidrs, *(cidr for listed in entries.values() for cidr in listed)]
    wide = [id for id, listed in entries.items() if wide_sources(listed)]
    if found := whole_internet(sources):
        return found, wide or [*entries], None  # a list may hold it in small pieces
    return sorted(set(wide_sources(sources))), wide, missing


def doors(aws: Account, region: str, group: dict[str, Any]) -> Iterator[Row]:
    """The rules of a group that let in the Internet, or may: rows without the last two cells."""
    for key, sources in rules(group).items():
        lists = sorted({source for source in sources if source.startswith("pl-")})
        cidrs = [source for source in sources if source not in lists]
        open_to, via, error = opened_to(aws, region, cidrs, lists)
        id, protocol, ports = group["GroupId"], key[0], port_words(*key)
        cells: dict[str, Cell] = {
            "Region": region,
            "Group ID": id,
            "Group name": group.get("GroupName", ""),
            "VPC": group.get("VpcId", ""),
            "Protocol": protocol,
            "Ports": ports,
        }
        rule = f"{id}/{protocol}/{ports.split(' (')[0].replace(' ', '-')}"
        if error:
            cells["Open to"] = ", ".join(lists)
            yield gap(region, f"{rule}/{','.join(lists)}", {**cells}, error)
        if open_to and not (error and via):  # the finding would have the ID of the gap
            known = [*cidrs, *(cidr for one in via for cidr in prefix_list(aws, region, one))]
            # one that is open by its own CIDRs has lists that were not read
            verdicts = door_verdicts(id, key, known, bool(lists and not via))
            mend = closing(group, key, [*public_sources(cidrs), *via])
            cells["Open to"] = ", ".join(open_to) + (f" ({', '.join(via)})" if via else "")
            part = f"{rule}/{','.join(lists if via else open_to)}"
            row = Row(region, part, cells, verdicts=verdicts, mend=mend)
            yield open_door(row, key, open_to, via)


def open_door(row: Row, key: RuleKey, open_to: list[str], via: list[str]) -> Row:
    """The row as a finding, before it is known who uses the group."""
    whole, whom, what = whole_internet(open_to), internet_words(open_to, via), port_service(*key)
    severity, control = port_severity(key[0], opened_ports(*key)) if whole else (MEDIUM, "")
    start = f"A{what[1:]} are" if what.startswith("all ") else f"{what} is"
    result, brief = f"{start} open to {whom}", (f"lets {whom} reach ", what, "")
    return replace(row, result=result, severity=severity, control=control, brief=brief)


def door_verdicts(
    group: str, key: RuleKey, cidrs: Iterable[str], unread: bool
) -> tuple[Verdict, ...]:
    """The controls that a rule with these sources fails; lists that are `unread` may make it
    fail those that ask about one family of addresses."""
    failed = failed_controls(key[0], opened_ports(*key), cidrs)
    whole = ("0.0.0.0/0", "::/0") if unread else ()
    possible = failed_controls(key[0], opened_ports(*key), whole)
    return (
        *(Verdict(control, group) for control in failed),
        *(Verdict(control, "", NOT_CHECKED) for control in possible if control not in failed),
    )


def interfaces_of(aws: Account, region: str, groups: set[Cell]) -> dict[Cell, list[dict[str, Any]]]:
    """The network interfaces that have each of the groups."""
    found: dict[Cell, list[dict[str, Any]]] = defaultdict(list)
    ids = sorted(map(str, groups))
    for some in (ids[i : i + 200] for i in range(0, len(ids), 200)):  # 200 values a filter
        filters = [{"Name": "group-id", "Values": some}]
        for interface in aws.fetch(
            "ec2", "DescribeNetworkInterfaces", "NetworkInterfaces", region,
            Filters=filters, IncludeManagedResources=True,
        ):  # fmt: skip
            for id in {group["GroupId"] for group in interface["Groups"]} & set(some):
                found[id].append(interface)
    return found


def is_public(interface: dict[str, Any]) -> bool:
    """Whether an interface has an address of the Internet: IPv4 or Elastic IP, or IPv6."""
    addresses = interface.get("PrivateIpAddresses") or ()
    if any(address.get("Association") for address in (interface, *addresses)):
        return True
    ipv6 = interface.get("Ipv6Addresses") or ()
    return any(ip_address(address["Ipv6Address"]).is_global for address in ipv6)


def use_words(interfaces: Sequence[dict[str, Any]], blocked: str) -> tuple[str, str]:
    """Who uses a group, as a cell and as the end of the sentence about an open door."""
    stopped = f"; {blocked} stops it" if blocked else ""
    if not interfaces:
        return "not in use", f"; nothing uses it{stopped}"
    public, number = sum(map(is_public, interfaces)), counted(len(interfaces), "interface")
    verb, some = "uses" if len(interfaces) == 1 else "use", f"{public:,}" if public else "none"
    end = f"; {number} {verb} it, {some} with a public address{stopped}"
    return f"{number}, {public:,} public", end


@dataclass(frozen=True)
class Ingress:
    """A region's VPC block public access: its mode, the account's own VPCs, to which alone it
    applies (subnets may be shared by another account), and the VPCs and subnets let off."""

    mode: str
    own: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()

    def blocks(self, vpc: str, interfaces: Sequence[dict[str, Any]]) -> str:
        """The mode, where it stops what comes in through an Internet gateway, else blank.

        https://docs.aws.amazon.com/vpc/latest/userguide/security-vpc-bpa.html
        """
        # a group may be used in other VPCs than its own
        vpcs = {vpc, *(interface.get("VpcId", vpc) for interface in interfaces)}
        subnets = {interface.get("SubnetId", "") for interface in interfaces}
        stops = self.mode.startswith("block-") and vpcs <= self.own
        if not stops or (vpcs | subnets) & self.excluded:
            return ""
        return f"VPC block public access ({self.mode})"


@once
def ingress(aws: Account, region: str) -> Ingress:
    options = aws.ask("ec2", "DescribeVpcBlockPublicAccessOptions", region)
    mode = options["VpcBlockPublicAccessOptions"]["InternetGatewayBlockMode"]
    if mode == "off":
        return Ingress(mode)
    vpcs = aws.fetch("ec2", "DescribeVpcs", "Vpcs", region)
    call = "DescribeVpcBlockPublicAccessExclusions"
    exclusions = aws.fetch("ec2", call, "VpcBlockPublicAccessExclusions", region)
    own = frozenset(vpc["VpcId"] for vpc in vpcs if vpc["OwnerId"] == aws.number)
    void = ("create-failed", "delete-complete", "disable-complete")
    let_off = frozenset(
        one["ResourceArn"].rpartition("/")[2]
        for one in exclusions
        if one["InternetGatewayExclusionMode"] == "allow-bidirectional" and one["State"] not in void
    )
    return Ingress(mode, own, let_off)


@check(
    "Security groups",
    over=regions,
    columns=(
        *("Region", "Group ID", "Group name", "VPC", "Protocol", "Ports", "Open to"),
        *("Used by", "Blocked by"),
    ),
    thing=("Group name", "Group ID", "Region"),
    kind="rule",
    controls=GROUP_CONTROLS,
    about="Inbound rules open to the Internet. Narrow each to those who need it, or remove it.",
    docs="https://docs.aws.amazon.com/vpc/latest/userguide/security-group-rules.html",
    links={"Group ID": "ec2/home?region={Region}#SecurityGroup:groupId={Group ID}"},
    nothing="No rule open to the Internet in {looked_at:,} groups in {targets:,} regions",
)
def check_security_groups(aws: Account, region: str) -> Rows:
    """Inbound rules that let in the whole Internet, or a large part of it.

    A group in no use is one severity less, a door behind VPC block public access is Low.
    Where either may not be read a door is open all the same, and the region is a gap too.
    """
    groups, found = 0, list[Row]()
    try:
        for group in aws.fetch("ec2", "DescribeSecurityGroups", "SecurityGroups", region):
            groups += 1
            found += doors(aws, region, group)
        in_use = interfaces_of(aws, region, {door.cells["Group ID"] for door in found})
        barrier = ingress(aws, region) if found else None
    except Unanswered:
        yield from (judged(door, [], None) for door in found)
        raise
    yield from (judged(door, in_use[door.cells["Group ID"]], barrier) for door in found)
    return Counter(dict.fromkeys(["", *GROUP_CONTROLS], groups))


def judged(door: Row, interfaces: list[dict[str, Any]], barrier: Ingress | None) -> Row:
    """A door in the light of who uses its group and what stands in front of it; without
    `barrier` nothing is known of either."""
    if not (barrier and door.severity):
        unknown = dict.fromkeys(("Used by", "Blocked by"), NOT_CHECKED)
        return replace(door, cells={**door.cells, **unknown})
    blocked = barrier.blocks(str(door.cells["VPC"]), interfaces)
    used, end = use_words(interfaces, blocked)
    cells = door.cells | {"Used by": used, "Blocked by": blocked}
    severity = LOW if blocked else door.severity if interfaces else lowered(door.severity)
    return door.ending(end, cells=cells, severity=severity)


# === check 3: access keys =============================================================


@once
def account_summary(aws: Account) -> dict[str, int]:
    return aws.ask("iam", "GetAccountSummary")["SummaryMap"]  # type: ignore[no-any-return]


def key_age(created: datetime, now: datetime) -> int:
    """Whole days since the key was made. A key cannot be rotated, only replaced."""
    return (now - created).days


def due_day(created: datetime, max_age: int) -> datetime:
    """The first moment at which the key is older than allowed."""
    return created + timedelta(days=max_age + 1)


@once
def access_keys(aws: Account, user: str) -> list[dict[str, Any]]:
    return list(aws.fetch("iam", "ListAccessKeys", "AccessKeyMetadata", UserName=user))


@check(
    "Access keys",
    over=users,
    ahead=(user_list, account_summary, every(access_keys, user_list)),
    threads=THREADS_IAM,
    columns=("User", "Access key ID", "Key status", "Created", "Age (days)", "Last used"),
    thing=("User", "Access key ID"),
    kind="key",
    controls=("IAM.3", "IAM.4"),
    about="Every access key and its age. Replace an old key, then delete it.",
    docs="https://docs.aws.amazon.com/IAM/latest/UserGuide/id-credentials-access-keys-update.html",
    links={"User": "iam/home#/users/details/{User}?section=security_credentials"},
    nothing="No access key among {targets:,} users, root included",
)
def check_access_keys(aws: Account, user: str) -> Rows:
    """IAM.3: keys older than allowed. IAM.4: any key of root. An inactive old key is ours."""
    if user == ROOT:
        if account_summary(aws)["AccountAccessKeysPresent"]:
            row = Row(ROOT, "keys", {"User": ROOT}, "Root has access keys", CRITICAL, "IAM.4")
            row = replace(row, verdicts=(Verdict("IAM.4", ROOT),), mend="sign in as root")
            yield replace(row, brief=("has access keys", "", ""))
        return Counter({"IAM.4": 1})
    keys = access_keys(aws, user)
    for key in keys:
        id, created = key["AccessKeyId"], key["CreateDate"]
        age = key_age(created, aws.now)
        cells: dict[str, Cell] = {
            "User": user,
            "Access key ID": id,
            "Key status": key["Status"],
            "Created": created,
            "Age (days)": age,
            "Last used": "",
        }
        # IAM.3 asks for 90 days of active keys, whatever age we were told
        fails = key["Status"] == "Active" and age > MAX_KEY_AGE
        row = Row(user, id, cells, verdicts=(Verdict("IAM.3", id),) if fails else ())
        if age > aws.max_key_age:
            yield from old_key(aws, row)
            continue
        due = due_day(created, aws.max_key_age)
        soon = f", due {due:%Y-%m-%d}" if due - aws.now <= SOON else ""
        yield replace(row, result=f"Key is rotated{soon}")
    return Counter({"IAM.3": sum(key["Status"] == "Active" for key in keys)})


def old_key(aws: Account, row: Row) -> Iterator[Row]:
    """The row as a finding, unless the key is gone by now."""
    user, key, active = row.target, row.part, row.cells["Key status"] == "Active"
    try:
        answer = aws.ask("iam", "GetAccessKeyLastUsed", AccessKeyId=key)["AccessKeyLastUsed"]
    except Unanswered as error:
        if error.code not in GONE:
            yield replace(row, gap=replace(error))
        return
    last = answer.get("LastUsedDate")
    used = f"used on {last:%Y-%m-%d}" if last else "never used"
    words = f"is {row.cells['Age (days)']:,} days old and was {used}"
    option = (*cli_option("user-name", user), "--access-key-id", key, "--status", "Inactive")
    mend = ("iam", "update-access-key", *option) if active else "already inactive"
    kind, severity, control = ("key", MEDIUM, "IAM.3") if active else ("inactive key", LOW, "")
    result, brief = f"{kind.capitalize()} of {user} {words}", (f"{kind} {words}", "", "")
    row = replace(row, result=result, severity=severity, control=control, brief=brief, mend=mend)
    yield replace(row, cells=row.cells | {"Last used": last or "never"})


# === check 4: MFA =====================================================================


@once
def credential_report(aws: Account) -> tuple[bool, dict[str, dict[str, str]]]:
    """Whether the report was made for this run, and its rows by user; empty where AWS gives
    none: then everything is asked live.

    AWS keeps a report for four hours, and starts a new one only when that is over:
    https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_getting-report.html
    """
    waiting = ("ReportInProgress", "ReportNotPresent", "ReportExpired")
    try:
        fresh = aws.ask("iam", "GenerateCredentialReport")["State"] == "STARTED"
        for _ in range(REPORT_POLLS):
            if answer := aws.ask("iam", "GetCredentialReport", absent=waiting):
                text = answer["Content"].decode()
                return fresh, {row["user"]: row for row in csv.DictReader(io.StringIO(text))}
            time.sleep(REPORT_PAUSE)
    except Unanswered:
        pass
    return False, {}


@once
def virtual_mfa_users(aws: Account) -> set[str]:
    """Who has a virtual MFA device now, by ARN."""
    call, items = "ListVirtualMFADevices", "VirtualMFADevices"
    devices = aws.fetch("iam", call, items, AssignmentStatus="Assigned")
    return {device["User"]["Arn"] for device in devices if device.get("User")}


def has_mfa(aws: Account, user: str) -> bool:
    """What a fresh report says, else what is true now: an old report may show what an
    administrator has just mended."""
    fresh, report = credential_report(aws)
    if fresh and user in report:
        return report[user]["mfa_active"].lower() == "true"
    if user_list(aws).get(user, {}).get("Arn") in virtual_mfa_users(aws):
        return True
    return any(aws.fetch("iam", "ListMFADevices", "MFADevices", UserName=user))


def has_password(aws: Account, user: str) -> bool:
    _, report = credential_report(aws)
    if user in report:
        return report[user]["password_enabled"].lower() == "true"
    return bool(aws.ask("iam", "GetLoginProfile", UserName=user, absent={"NoSuchEntity"}))


def report_date(text: str) -> Cell:
    """A date of the credential report; its words for 'no date' are `N/A`, `no_information`
    and `not_supported`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text[:1].isdigit() else ""


def sign_in_words(password: bool, last: Cell) -> str:
    """How somebody without MFA signs in."""
    if not password:
        return "has no MFA device, and no console password"
    if isinstance(last, datetime):
        return f"signs in with a password alone, last on {last:%Y-%m-%d}"
    return f"can sign in with a password alone{', but never did' if last else ''}"


def mfa_row(user: str, password: bool, last: Cell, mfa: bool, severity: str, *controls: str) -> Row:
    """How somebody signs in; without MFA that is a finding, which fails the controls."""
    words, who = sign_in_words(password, last), "Root" if user == ROOT else user
    cells = {"Console password": yes_no(password), "Last sign-in": last, "MFA": yes_no(mfa)}
    row = Row(user, "", {"User": user, **cells}, "Enabled")
    if mfa:
        return row
    verdicts = tuple(Verdict(control, user) for control in controls)
    mend = "sign in as root" if user == ROOT else "its owner must enrol a device"
    row = replace(row, result=f"{who} {words}", brief=(words, "", ""), mend=mend)
    return replace(row, severity=severity, control=controls[0], verdicts=verdicts)


@check(
    "MFA",
    over=users,
    ahead=(user_list, account_summary, credential_report),
    threads=THREADS_IAM,
    columns=("User", "Console password", "Last sign-in", "MFA"),
    controls=("IAM.5", "IAM.9", "IAM.19"),
    about="Who signs in with a password alone. Give every user, and root, an MFA device.",
    docs="https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_mfa.html",
    links={"User": "iam/home#/users/details/{User}?section=security_credentials"},
    nothing="No user",
)
def check_mfa(aws: Account, user: str) -> Rows:
    """IAM.9 for root, IAM.5 for users with a console password, IAM.19 for the others."""
    if user == ROOT:
        yield root_mfa(aws)
        return Counter({"IAM.9": 1})
    mfa, password = has_mfa(aws, user), has_password(aws, user)
    last = user_list(aws).get(user, {}).get("PasswordLastUsed", "never" if password else "")
    controls = ("IAM.5", "IAM.19") if password else ("IAM.19",)
    yield mfa_row(user, password, last, mfa, MEDIUM, *controls)
    return Counter(controls)


def root_mfa(aws: Account) -> Row:
    """Any kind of MFA will do. Where an organization has removed the root credentials there
    is nothing to protect: neither password nor keys."""
    summary = account_summary(aws)
    govcloud = aws.region.startswith("us-gov-")  # there root cannot sign in at all
    mfa = bool(summary["AccountMFAEnabled"])
    password = bool(summary.get("AccountPasswordPresent", 1)) and not govcloud
    _, report = credential_report(aws)
    last = report_date(report.get(ROOT, {}).get("password_last_used", ""))
    row = mfa_row(ROOT, password, last, mfa, CRITICAL, "IAM.9")
    if not mfa and not password and not summary["AccountAccessKeysPresent"]:
        return Row(ROOT, "", row.cells, "Root has no credentials")
    return row


# === check 5: CloudTrail ==============================================================

READ, WRITE = "read", "write"
KINDS = {"All": {READ, WRITE}, "ReadOnly": {READ}, "WriteOnly": {WRITE}}


def advanced_kinds(selector: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Which management events an advanced event selector records, and the sources it leaves
    out. One narrowed down in another way is not counted as recording anything."""
    kinds, excluded, management = {READ, WRITE}, set(), False
    for part in selector["FieldSelectors"]:
        name, conditions = part["Field"], {k: v for k, v in part.items() if k != "Field" and v}
        if name == "eventCategory":
            management = conditions == {"Equals": ["Management"]}
        elif name == "readOnly" and conditions in ({"Equals": ["true"]}, {"Equals": ["false"]}):
            kinds = {READ} if conditions["Equals"] == ["true"] else {WRITE}
        elif name == "eventSource" and set(conditions) == {"NotEquals"}:
            excluded = set(conditions["NotEquals"])
        else:
            return set(), set()
    return (kinds, excluded) if management else (set(), set())


def management_events(selectors: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Which management events a trail records (read, write), and the sources left out.

    `selectors` is the answer of GetEventSelectors. What one selector leaves out another
    may record:
    https://docs.aws.amazon.com/awscloudtrail/latest/userguide/logging-management-events-with-cloudtrail.html
    """
    each = [advanced_kinds(selector) for selector in selectors.get("AdvancedEventSelectors") or ()]
    for selector in () if each else selectors["EventSelectors"]:
        if selector["IncludeManagementEvents"]:
            excluded = set(selector.get("ExcludeManagementEventSources") or ())
            each.append((KINDS[selector["ReadWriteType"]], excluded))
    recorded: set[str] = set().union(*(kinds for kinds, _ in each))
    left_out = (
        set.intersection(*(excluded for kinds, excluded in each if kind in kinds))
        for kind in recorded
    )
    return recorded, set().union(*left_out)


@dataclass(frozen=True)
class Trail:
    """A trail and what is known of it: `problem` is why it does not record; `flaws` are what
    is wrong although it does, each as (name, words, control)."""

    about: dict[str, Any]
    logging: str = ""
    events: str = ""
    problem: str = ""
    flaws: tuple[tuple[str, str, str], ...] = ()
    error: Unanswered | None = None
    mend: Mend = ""

    def rank(self) -> tuple[bool, bool, int]:
        """The trail that proves most comes first."""
        return bool(self.problem), self.error is not None, len(self.flaws)

    def records_everything(self) -> bool:
        left_out = any(name == "events-left-out" for name, _, _ in self.flaws)
        return not self.problem and not self.error and not left_out

    def cells(self, region: str) -> dict[str, Cell]:
        about, valid = self.about, self.about.get("LogFileValidationEnabled")
        return {
            "Region": region,
            "Trail": about.get("Name", ""),
            "Home region": about.get("HomeRegion", ""),
            "Multi-region": yes_no(about["IsMultiRegionTrail"]) if about else "",
            "Logging": self.logging,
            "Management events": self.events,
            "Log file validation": yes_no(valid) if about else "",
        }

    def row(self, region: str) -> Row:
        """What the trail, or that there is none, means for a region."""
        cells, name = self.cells(region), self.about.get("Name", "")
        if self.error:
            return gap(region, "", cells, self.error)
        if not self.problem and not self.flaws:
            return Row(region, "", cells, "Enabled")
        part, severity, control = "not-enabled", HIGH, "CloudTrail.1"
        brief = ("does not record the API calls of ", region, f": {self.problem}")
        if not name:
            brief = ("No trail records the API calls of ", region, "")
        elif not self.problem:
            names, words, controls = zip(*self.flaws, strict=True)
            part, severity = "+".join(names), LOW
            control = ", ".join(sorted(filter(None, controls)))
            brief = ("records ", region, f", but {in_words(words)}")
        result = f"{f'Trail {name} ' if name else ''}{''.join(brief)}"
        return Row(region, part, cells, result, severity, control, brief=brief, mend=self.mend)


def weigh(about: dict[str, Any], status: dict[str, Any], selectors: dict[str, Any]) -> Trail:
    """What a trail is worth, from DescribeTrails, GetTrailStatus and GetEventSelectors."""
    recorded, left_out = management_events(selectors)
    sources, error = ", ".join(sorted(left_out)), status.get("LatestDeliveryError")
    events = ("none", f"{min(recorded, default='')} only", "read and write")[len(recorded)]
    problems = [] if status["IsLogging"] else ["logging stopped"]
    problems += [] if len(recorded) == 2 else [f"management events: {events}"]
    flaws = []
    if sources:
        events = f"{events} without {sources}"
        flaws += [("events-left-out", f"it leaves out events of {sources}", "CloudTrail.1")]
    if not about.get("LogFileValidationEnabled"):
        flaws += [("log-file-validation", "its log files are not validated", "CloudTrail.4")]
    if not about.get("IncludeGlobalServiceEvents", True):
        flaws += [("global-events", "it leaves out global services", "")]
    if error:
        flaws += [("delivery", f"it cannot deliver its logs ({error})", "")]
    logging, mend = yes_no(status["IsLogging"]), recording(about, problems, {f[0] for f in flaws})
    return Trail(about, logging, events, ", ".join(problems), tuple(flaws), mend=mend)


NO_TRAIL = Trail({}, problem="no trail", mend="create a trail")


def recording(about: dict[str, Any], problems: list[str], flaws: set[str]) -> Mend:
    """The command that makes a trail record as it should, where one command can."""
    trail = ("--name", about["TrailARN"])
    switches = {
        "log-file-validation": "--enable-log-file-validation",
        "global-events": "--include-global-service-events",
    }
    if problems == ["logging stopped"]:
        return ("cloudtrail", "start-logging", *trail)
    if problems or flaws - switches.keys():
        return "change the trail by hand"
    chosen = [switch for flaw, switch in switches.items() if flaw in flaws]
    return ("cloudtrail", "update-trail", *trail, *chosen)


@once
def trails(aws: Account, region: str) -> list[dict[str, Any]]:
    """The trails that cover a region, also those at home elsewhere or of the organization."""
    answer = aws.ask("cloudtrail", "DescribeTrails", region, includeShadowTrails=True)
    return list(answer["trailList"])


@once
def trail_state(aws: Account, arn: str, home: str, custom: bool) -> tuple[Answer, dict[str, Any]]:
    """Status and event selectors. The default selector, which a member account may not be
    allowed to read of its organization's trail, records all management events."""
    status = aws.ask("cloudtrail", "GetTrailStatus", home, Name=arn)
    if custom:
        return status, aws.ask("cloudtrail", "GetEventSelectors", home, TrailName=arn)
    return status, {"EventSelectors": [{"ReadWriteType": "All", "IncludeManagementEvents": True}]}


def weighed(aws: Account, about: dict[str, Any]) -> Trail:
    custom = about.get("HasCustomEventSelectors", True)
    try:
        return weigh(about, *trail_state(aws, about["TrailARN"], about["HomeRegion"], custom))
    except Unanswered as error:
        return Trail(about, error=error)


def seen_elsewhere(aws: Account, denied: str) -> Iterator[Trail]:
    """Multi-region trails as other regions show them: they cover the denied region too."""
    for region in regions(aws):
        try:
            found = trails(aws, region) if region != denied else ()
        except Unanswered:
            continue
        yield from (weighed(aws, about) for about in found if about["IsMultiRegionTrail"])


@check(
    "CloudTrail",
    over=regions,
    ahead=(every(trails, regions),),
    columns=(
        *("Region", "Trail", "Home region", "Multi-region", "Logging"),
        *("Management events", "Log file validation"),
    ),
    thing=("Trail", "Home region"),
    kind="region",
    controls=("CloudTrail.1", "CloudTrail.4"),
    about="Whether each region's API calls are recorded. One multi-region trail covers them all.",
    docs="https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-multi-region-trails.html",
    links={"Trail": "cloudtrailv2/home?region={Home region}#/trails"},
    nothing="No region",
)
def check_cloudtrail(aws: Account, region: str) -> Rows:
    """CloudTrail.1: a trail that covers the region logs now and records management events,
    read and write. CloudTrail.4: log file validation. Of several trails the best counts."""
    unread: tuple[Verdict, ...] = ()
    try:
        found = [weighed(aws, about) for about in trails(aws, region)]
    except Unanswered:
        unread = (Verdict("CloudTrail.4", region, NOT_CHECKED),)  # of trails of this region only
        proof = min(seen_elsewhere(aws, region), key=Trail.rank, default=None)
        if proof is None or proof.problem or proof.error:
            raise
        found = [proof]
    best = min(found, key=Trail.rank, default=NO_TRAIL)
    if best.about and best.about["TrailARN"].split(":")[4] != aws.number:
        best = replace(best, mend="the trail of another account")
    verdicts, looked_at = trail_verdicts(found, aws.number, region)
    yield replace(best.row(region), verdicts=(*verdicts, *unread))
    return looked_at


def trail_verdicts(
    found: Collection[Trail], number: str, region: str
) -> tuple[list[Verdict], Counter[str]]:
    """CloudTrail.1 asks for one multi-region trail that leaves nothing out, CloudTrail.4 about
    each trail of the account, here those at home in the region; and how many each looked at."""
    wide = [trail for trail in found if trail.about["IsMultiRegionTrail"]]
    proven = any(trail.records_everything() for trail in wide)
    unknown = any(trail.error for trail in wide) and not proven
    verdicts = [] if proven or unknown else [Verdict("CloudTrail.1", number)]
    home = [trail.about for trail in found if trail.about["HomeRegion"] == region]
    own = [about for about in home if about["TrailARN"].split(":")[4] == number]
    bad = [about["TrailARN"] for about in own if not about.get("LogFileValidationEnabled")]
    verdicts += [Verdict("CloudTrail.4", arn) for arn in bad]
    return verdicts, Counter({"CloudTrail.1": int(not unknown), "CloudTrail.4": len(own)})


# === check 6: S3 ACLs =================================================================

# What a permission lets somebody do, in words that stand in front of the bucket's name or
# behind it, and the controls that fail if the public may.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/acl-overview.html#permissions
MAY = {
    "READ": ("list", "list it", "S3.2"),
    "READ_ACP": ("read the ACL of", "read its ACL", "S3.2"),
    "WRITE": ("write to", "write to it", "S3.3"),
    "WRITE_ACP": ("change the ACL of", "change its ACL", "S3.3"),
    "FULL_CONTROL": ("list, write and change the ACL of", "have full control of it", "S3.2, S3.3"),
}
PUBLIC = {EVERYONE: "everyone on the Internet", ANY_AWS_ACCOUNT: "anyone with an AWS account"}
BUCKET_CONTROLS = ("S3.2", "S3.3", "S3.12")
GROUPS = {
    EVERYONE: ("AllUsers", "Everyone (AllUsers)"),
    ANY_AWS_ACCOUNT: ("AuthenticatedUsers", "Any AWS account (AuthenticatedUsers)"),
    LOG_DELIVERY: ("LogDelivery", "S3 log delivery"),
}


def grantee_words(grantee: dict[str, Any], owner: str) -> tuple[str, str]:
    """A short name and words for a grantee. AWS no longer tells display names."""
    if uri := grantee.get("URI"):
        return GROUPS.get(uri, (uri, uri))
    id = grantee.get("ID") or grantee.get("EmailAddress", "")
    if id == owner:
        return "Owner", "Owner"
    name = grantee.get("DisplayName")
    return id, f"{name} ({id})" if name else id


def grant_severity(grantee: dict[str, Any], owner: str, permission: str) -> tuple[str, str]:
    """Severity and control of a grant, before any public access block; blank if harmless."""
    if grantee.get("URI") in PUBLIC:
        return CRITICAL, MAY[permission][2]
    if grantee.get("URI") == LOG_DELIVERY or grantee.get("ID") == owner:
        return "", ""
    return MEDIUM, "S3.12"


def grant_words(grantee: dict[str, Any], permission: str, bucket: str) -> tuple[str, Brief]:
    """Who may do what, as a sentence and behind the name of the bucket."""
    who = PUBLIC.get(grantee.get("URI", ""), "another AWS account")
    may, its, _ = MAY.get(permission, (f"{permission} on", f"{permission} on it", ""))
    return f"{who[0].upper()}{who[1:]} may {may} {bucket}", (f"{who} may ", its, "")


def grant_verdicts(bucket: str, severity: str, permission: str) -> tuple[Verdict, ...]:
    """The controls that a grant fails: S3.12 is about any user's, S3.2 and S3.3 about public
    ones. Whether an ACL that is open itself fails them, their pages do not tell."""
    public = MAY[permission][2].split(", ") if severity == CRITICAL else ()
    word = NOT_CHECKED if permission.endswith("_ACP") else FAILED
    users = (Verdict("S3.12", bucket),) if severity else ()
    return (*users, *(Verdict(control, bucket, word) for control in public))


@once
def public_access_block(aws: Account, bucket: str = "", region: str = "") -> Answer | None:
    """The settings of a bucket's block, or of the account's; None where there is none."""
    service, of = ("s3", {"Bucket": bucket}) if bucket else ("s3control", {"AccountId": aws.number})
    absent = {"NoSuchPublicAccessBlockConfiguration"}
    answer = aws.ask(service, "GetPublicAccessBlock", region, absent, **of)
    return answer["PublicAccessBlockConfiguration"] if answer else None


def blocked_by(aws: Account, bucket: str, region: str, setting: str) -> str:
    """Which public access block has the setting on, blank if none. One that has it on is
    proof enough, if the other may not be read or not."""
    missing: Unanswered | None = None
    for level, where in (("account", ()), ("bucket", (bucket, region))):
        try:
            block = public_access_block(aws, *where)
            if block is not None and block[setting]:
                return f"{level} public access block"
        except Unanswered as error:
            missing = error
    if missing:
        raise missing
    return ""


def without_public_grants(bucket: str, acl: dict[str, Any]) -> Mend:
    """The command that leaves a bucket all its grants but the public ones."""
    names, grants = ("Type", "ID", "URI", "EmailAddress"), []
    for grant in acl["Grants"]:
        if (who := grant["Grantee"]).get("URI") not in PUBLIC:
            kept = {name: who[name] for name in names if name in who}
            grants.append({"Grantee": kept, "Permission": grant["Permission"]})
    policy = compact({"Owner": {"ID": acl["Owner"]["ID"]}, "Grants": grants})
    return ("s3api", "put-bucket-acl", "--bucket", bucket, "--access-control-policy", policy)


def restricted(bucket: str, block: dict[str, Any] | None) -> Mend:
    """The command that makes a bucket's public policy void, and leaves the other settings."""
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    on = {name: bool((block or {}).get(name)) for name in names} | {"RestrictPublicBuckets": True}
    settings = ",".join(f"{name}={str(value).lower()}" for name, value in on.items())
    option = ("--public-access-block-configuration", settings)
    return ("s3api", "put-public-access-block", "--bucket", bucket, *option)


@once
def bucket_acl(aws: Account, bucket: str) -> Answer:
    return aws.ask("s3", "GetBucketAcl", buckets(aws)[bucket], Bucket=bucket)


@once
def policy_status(aws: Account, bucket: str) -> Answer:
    region, absent = buckets(aws)[bucket], {"NoSuchBucketPolicy"}
    return aws.ask("s3", "GetBucketPolicyStatus", region, absent, Bucket=bucket)


def acl_and_policy(aws: Account, bucket: str) -> None:
    bucket_acl(aws, bucket)
    policy_status(aws, bucket)


@check(
    "S3 ACLs",
    over=buckets,
    ahead=(buckets, every(acl_and_policy, buckets)),
    columns=("Bucket", "Region", "Owner", "Grantee", "Permission", "Blocked by"),
    thing=("Bucket", "Region"),
    kind="grant",
    controls=BUCKET_CONTROLS,
    about="Who is granted what on every bucket. Turn ACLs off, and block public access.",
    docs="https://docs.aws.amazon.com/AmazonS3/latest/userguide/about-object-ownership.html",
    links={"Bucket": "s3/buckets/{Bucket}?region={Region}"},
    nothing="No grant on any of {targets:,} buckets",
)
def check_s3_acls(aws: Account, bucket: str) -> Rows:
    """Every grant on a bucket, and whether its policy makes it public."""
    region, acl = buckets(aws)[bucket], bucket_acl(aws, bucket)
    owner, private = acl["Owner"]["ID"], without_public_grants(bucket, acl)
    where = {"Bucket": bucket, "Region": region, "Owner": acl["Owner"].get("DisplayName") or owner}
    for grant in acl["Grants"]:
        grantee, permission = grant["Grantee"], grant["Permission"]
        short, words = grantee_words(grantee, owner)
        severity, control = grant_severity(grantee, owner, permission)
        cells = where | {"Grantee": words, "Permission": permission, "Blocked by": ""}
        mend: Mend = "ask the other account" if severity == MEDIUM else private
        row = Row(bucket, f"{short}/{permission}", cells, f"{words} has {permission}", mend=mend)
        if severity:
            result, brief = grant_words(grantee, permission, bucket)
            row = replace(row, result=result, severity=severity, control=control, brief=brief)
            row = replace(row, verdicts=grant_verdicts(bucket, severity, permission))
        yield public(aws, row, "IgnorePublicAcls") if severity == CRITICAL else row
    policy = policy_status(aws, bucket)
    if policy and policy["PolicyStatus"]["IsPublic"]:
        cells = where | {"Grantee": "Everyone (bucket policy)", "Permission": "policy"}
        result = f"The policy of {bucket} lets in {PUBLIC[EVERYONE]}"
        brief = (f"its policy lets in {PUBLIC[EVERYONE]}", "", "")
        row = Row(bucket, "policy", cells, result, CRITICAL, "S3.2, S3.3", brief=brief)
        # whether it lets them read or write is not asked
        verdicts = tuple(Verdict(control, bucket, NOT_CHECKED) for control in ("S3.2", "S3.3"))
        yield public(aws, replace(row, verdicts=verdicts), "RestrictPublicBuckets")
    return Counter(BUCKET_CONTROLS)


def public(aws: Account, row: Row, setting: str) -> Row:
    """The row for what is public, unless a block with this setting makes it void."""
    bucket, region = row.target, str(row.cells["Region"])
    whatever_blocks = tuple(one for one in row.verdicts if one.control == "S3.12")
    try:
        blocked = blocked_by(aws, bucket, region, setting)
        if not blocked and not row.mend:
            row = replace(row, mend=restricted(bucket, public_access_block(aws, bucket, region)))
    except Unanswered as error:
        why = gap(bucket, row.part, row.cells | {"Blocked by": ""}, error)
        return replace(why, verdicts=whatever_blocks)
    row = replace(row, cells=row.cells | {"Blocked by": blocked})
    if not blocked:
        return row
    facts = {"severity": LOW, "verdicts": whatever_blocks, "mend": row.mend or "already void"}
    return row.ending(f", but the {blocked} makes that void", **facts)


# === runner ===========================================================================

Progress = Callable[[str], None]


@dataclass
class Sheet:
    """A check that has been run. `unread` are the targets that could not be looked at;
    `listed` is whether all targets are known, `whole` whether all were asked for. `looked_at`
    are the numbers of things, by control."""

    check: Check
    rows: list[Row]
    unread: Collection[str] = ()
    listed: bool = True
    whole: bool = True
    looked_at: Counter[str] = field(default_factory=Counter)

    def id(self, row: Row) -> str:
        """What names the row from run to run, in acceptances and in the state."""
        return f"{self.check.name}/{row.id}"


def examine(what: Check, aws: Account, target: str) -> tuple[list[Row], Counter[str]]:
    """The rows of one target, and how many things were looked at, by control. A failure costs
    what is left of this target, and says so."""
    rows: list[Row] = []
    found = what.rows(aws, target)
    try:
        while True:
            rows.append(next(found))
    except StopIteration as end:
        number = end.value or 0
        return rows, number if isinstance(number, Counter) else Counter({"": number})
    except Exception as error:
        vanished = isinstance(error, Unanswered) and error.code in GONE
        return ([] if vanished else [*rows, unread_row(what, target, error)]), Counter()


def as_gap(error: Exception) -> Unanswered:
    """What was not answered, when AWS did not answer, or when we, or who answered, blundered."""
    if isinstance(error, CannotRun):
        return Unanswered("CannotRun", detail=str(error))
    if not isinstance(error, Unanswered):
        traceback.print_exc()
        return Unanswered("InternalError", detail=f"{type(error).__name__}: {error}")
    return replace(error)


def unread_row(what: Check, target: str, error: Exception) -> Row:
    return gap(target, "", {what.columns[0]: target}, as_gap(error))


def run_check(what: Check, aws: Account, progress: Progress) -> Sheet:
    """Run a check over all its targets side by side; the rows come in target order."""
    pool = ThreadPoolExecutor(what.threads)
    jobs: dict[str, Future[tuple[list[Row], Counter[str]]]] = {}
    rows, looked_at, unlisted = list[Row](), Counter[str](), list[Row]()
    try:
        try:
            for target in what.over(aws):
                jobs[target] = pool.submit(examine, what, aws, target)
        except Exception as error:
            unlisted = [unread_row(what, what.targets, error)]
        for done, job in enumerate(jobs.values(), 1):
            progress(f"{what.title}: {done:,} of {len(jobs):,} {what.targets}")
            found, number = job.result()
            rows += found
            looked_at += number
    finally:  # when interrupted, threads that still wait for AWS must not hold the run
        pool.shutdown(wait=False, cancel_futures=True)
    rows, missed = told_once(what, [*rows, *unlisted], aws.expired)
    targets = len(jobs.keys() - missed)
    if all(row.gap for row in rows) and (targets or not rows):
        words = what.nothing.format(targets=targets, looked_at=looked_at[""])
        rows.insert(0, Row("nothing", "", {}, words))
    whole = what.over is not regions or not aws.only
    return Sheet(what, rows, missed, not unlisted, whole, looked_at)


def told_once(
    what: Check, rows: list[Row], expired: Unanswered | None
) -> tuple[list[Row], set[str]]:
    """The rows, and the targets that could not be looked at. That the credentials have
    expired is one row for all the targets that it cost."""
    missed = {row.target for row in rows if row.gap and not row.part}
    if lost := {row.target for row in rows if expired and row.gap == expired}:
        cells: dict[str, Cell] = {what.columns[0]: f"{len(lost):,} {what.targets}"}
        rows = [row for row in rows if row.gap != expired]
        rows += [gap("expired", "", cells, expired or Unanswered(""))]
    return rows, missed | lost


def look_ahead(aws: Account, checks: Iterable[Check]) -> None:
    """Put the questions of later checks while earlier ones run. The answers are kept, failures
    as well, so that nothing is asked twice and nothing differs but the waiting."""
    questions = dict.fromkeys([account_aliases, *(one for what in checks for one in what.ahead)])
    pool = ThreadPoolExecutor(len(questions))
    for question in questions:
        pool.submit(question, aws)
    pool.shutdown(wait=False)


# === files ============================================================================


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, for its owner only, as are folders that are made for it."""

    path: Path
    own_folder: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def place(self) -> str:
        """The whole name, for who stands elsewhere."""
        return str(self.path.resolve())

    def check(self) -> None:
        """Find out before the audit, not after it, whether it can be written."""
        folder = self.path.parent
        while self.own_folder and not folder.exists():
            folder = folder.parent
        if self.path.is_dir():
            raise CannotRun(f"{self} is a folder, not a file")
        if self.path.exists() and not os.access(self.path, os.W_OK):
            raise CannotRun(f"{self} is write-protected")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise CannotRun(f"cannot write into {folder}: {reason(error)}") from error

    def make_folder(self) -> None:
        if self.own_folder:
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)

    def read(self) -> bytes:
        return self.path.read_bytes()

    def write(self, data: bytes) -> None:
        """Write it in one move: a crash leaves the old one or the new."""
        self.make_folder()
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".security_check-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).replace(self.path)
        except BaseException:
            Path(temporary).unlink()
            raise

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replace what is there, if anything, by what becomes of it. The folder is locked
        meanwhile, so that two runs do not lose each other's changes."""
        self.make_folder()
        with locked(self.path.parent):
            self.write(change(self.read() if self.path.exists() else None))

    def documents(self) -> list[LocalFile]:
        """The JSON files of a folder; what is no folder is one itself."""
        self.path.stat()  # which raises an error if there is nothing
        found = sorted(self.path.glob("*.json")) if self.path.is_dir() else [self.path]
        return [LocalFile(path) for path in found]


WRITING = threading.Lock()  # of the state, by accounts that are audited side by side


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    with WRITING:
        try:
            import fcntl
        except ImportError:  # on Windows, where a folder cannot be locked
            yield
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


S3_NAME = re.compile(r"s3://([A-Za-z0-9._-]{3,63})(?:/(.*))?", re.DOTALL)
OVERTAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}  # somebody else wrote it
UPDATES = 50  # tries; who is overtaken has seen another one succeed


@dataclass(frozen=True)
class S3Object:
    """An object in S3. `aws` is the account that started the run, whatever account is audited.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    aws: Account
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    place = __str__

    def _ask(self, operation: str, **params: Any) -> Answer:
        return self.aws.ask("s3", operation, Bucket=self.bucket, **params)

    def check(self) -> None:
        """Put nothing beside it, on a condition that no object meets: S3 refuses for another
        reason if the bucket is not there, or if we may not."""
        folder, slash, name = self.key.rpartition("/")
        probe = f"{folder}{slash}.security_check-{name}"
        try:
            self._ask("PutObject", Key=probe, Body=b"", IfMatch='"no such tag"')
        except Unanswered as error:
            if error.code in {"NoSuchKey", *OVERTAKEN}:
                return
            raise CannotRun(f"cannot write {self}: {error}") from error
        raise CannotRun(f"cannot write {self}: what answered knows no conditions, so it is not S3")

    def read(self) -> bytes:
        return self._read()[0]

    def _read(self) -> tuple[bytes, str]:
        answer = self._ask("GetObject", Key=self.key, absent={"NoSuchKey"})
        if not answer:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return answer["Body"], answer["ETag"]

    def write(self, data: bytes, **condition: str) -> None:
        """Put it, which S3 does whole or not at all."""
        kind = mimetypes.guess_type(self.key)[0] or "application/octet-stream"
        kept = self._ask("PutObject", Key=self.key, Body=data, ContentType=kind, **condition)
        kept["ETag"]  # which is an error if it was not S3 that answered

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replace what is there, if anything, by what becomes of it: again where somebody else
        wrote it meanwhile."""
        for tries_left in reversed(range(UPDATES)):
            before, condition = None, {"IfNoneMatch": "*"}
            with contextlib.suppress(FileNotFoundError):
                before, tag = self._read()
                condition = {"IfMatch": tag}
            try:
                self.write(change(before), **condition)
            except Unanswered as error:
                if error.code not in {"NoSuchKey", *OVERTAKEN} or not tries_left:
                    raise
                time.sleep(secrets.randbelow(100) / 1000)
            else:
                return

    def documents(self) -> list[S3Object]:
        """The JSON objects right under a prefix; what is named like one is one itself."""
        if self.key.endswith(".json"):
            return [self]
        prefix = f"{self.key.rstrip('/')}/".lstrip("/")
        where: dict[str, Any] = {"Bucket": self.bucket, "Prefix": prefix, "Delimiter": "/"}
        keys = [one["Key"] for one in self.aws.fetch("s3", "ListObjectsV2", "Contents", **where)]
        return [replace(self, key=key) for key in keys if key.endswith(".json")]


File = LocalFile | S3Object
FAILED_FILES = (OSError, Unanswered)  # how reading and writing fail


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def reading(file: File) -> Iterator[None]:
    """What fails meanwhile is why the file cannot be read, in one line."""
    try:
        yield
    except FAILED_FILES as error:
        raise CannotRun(f"cannot read {file}: {reason(error)}") from error


def deliver(data: bytes, file: File) -> None:
    """Write the results, elsewhere if need be."""
    try:
        file.write(data)
    except FAILED_FILES as error:
        rescue(data, file, error)


def rescue(data: bytes, file: File, error: Exception) -> None:
    """Keep what could not be written on this machine: an audit is not run twice for a full
    disk."""
    why, name = f"cannot write {file}: {reason(error)}", Path(file.place()).name
    try:
        copy = LocalFile(Path(tempfile.mkdtemp(prefix="security_check-")) / name)
        copy.write(data)
    except OSError:
        raise CannotRun(f"{why}, and no copy elsewhere: the results are lost") from error
    raise CannotRun(f"{why}; the results are in {copy}") from error


# === months: what was accepted, what is new, what is gone ==============================

ACCEPT_LINE = re.compile(r"(\S+)(?:\s+until\s+(\S+))?\s+#\s*(\S.*)")
STATE_SCHEMA = 1

DAYS_KEPT = 12

Known = dict[str, dict[str, str]]  # by the ID of a finding: first_seen, result


@dataclass(frozen=True)
class Day:
    """What the audits of a day found: open findings by severity and gaps, as the last one saw
    them; findings that were new that day; and how many days those stood that are gone."""

    day: str
    found: dict[str, int]
    not_checked: int = 0
    new: int = 0
    stood: list[int] = field(default_factory=list)


class State(NamedTuple):
    """What is remembered, by account."""

    accounts: dict[str, Known]
    history: dict[str, list[Day]]


def start_of_day(day: str) -> datetime:
    """ValueError if it is no day like 2030-12-31."""
    return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=timezone.utc)


def acceptances(text: str, name: str) -> list[Acceptance]:
    """The decisions in a file: a line each, `ID [until YYYY-MM-DD] # reason`; the ID may be a
    glob. Blank lines and lines that begin with # do not count."""
    found = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        match = ACCEPT_LINE.fullmatch(line)
        if not match:
            raise CannotRun(f"{name}, line {number}: not `ID [until YYYY-MM-DD] # reason`")
        try:
            until = f"{start_of_day(match[2]):%Y-%m-%d}" if match[2] else ""
        except ValueError as error:
            why = f"{name}, line {number}: {match[2]} is not a date like 2030-12-31"
            raise CannotRun(why) from error
        found.append(Acceptance(match[1], until, match[3]))
    return found


def accepted(row: Row, number: str, id: str, decisions: Iterable[Acceptance], today: str) -> Row:
    """The row with the decision about it: the first that holds, else the first that is over."""
    matching = [one for one in decisions if one.is_about(number, id)]
    if row.status == OK or not matching:
        return row
    holding = (one for one in matching if not one.until or one.until >= today)
    if decision := next(holding, None):
        return replace(row, acceptance=decision)
    return replace(row, acceptance=matching[0], lapsed=True)


def settled(
    sheet: Sheet, number: str, decisions: Iterable[Acceptance], known: Known | None, today: str
) -> Sheet:
    """The sheet with what was accepted, and with the day on which each finding was first
    seen; `known` is None where no state is kept."""
    rows = []
    for row in sheet.rows:
        id = sheet.id(row)
        if known is not None and row.status != OK:
            first = known.get(id, {}).get("first_seen", "")
            fresh = not first and row.status == FINDING
            row = replace(row, first_seen=today if fresh else first, new=fresh)
        rows.append(accepted(row, number, id, decisions, today))
    return replace(sheet, rows=rows)


def is_open(sheet: Sheet, id: str, only: Collection[str]) -> bool:
    """Whether the run could not tell if a finding that it does not show is gone."""

    def is_about(target: str) -> bool:
        return f"{id}/".startswith(f"{sheet.check.name}/{target}/")

    left_out = sheet.check.over is regions and only and not any(map(is_about, only))
    return not sheet.listed or any(map(is_about, sheet.unread)) or bool(left_out)


def compared(sheets: list[Sheet], known: Known, only: Collection[str]) -> tuple[Known, Known]:
    """What to remember, and what is gone since last time. What could not be looked at is
    neither new nor gone: it is remembered as it was."""
    now: Known = {}
    for sheet in sheets:
        for row in sheet.rows:
            if row.first_seen:
                said = str(row.gap or row.result)
                entry = {"first_seen": row.first_seen, "result": said}
                now[sheet.id(row)] = known.get(sheet.id(row), entry)
    ran = {sheet.check.name: sheet for sheet in sheets}
    gone: Known = {}
    for id in sorted(known.keys() - now.keys()):
        name = id.partition("/")[0]
        kept = now if name not in ran or is_open(ran[name], id, only) else gone
        kept[id] = known[id]
    return now, gone


def with_today(days: Iterable[Day], report: Report, today: str) -> list[Day]:
    """The days with this one. Of several audits on one day the last counts; what was new and
    what went away on that day adds up."""
    earlier = {one.day: one for one in days}
    before = earlier.pop(today, Day(today, {}))
    found = report.rows(FINDING)
    gone = [start_of_day(entry["first_seen"]) for entry in (report.gone or {}).values()]
    stood = [*before.stood, *((start_of_day(today) - first).days for first in gone)]
    severities = Counter(row.severity for row in found)
    new = sum(row.first_seen == today for row in found)
    now = Day(
        today, {name: severities[name] for name in SEVERITIES}, len(report.gaps()), new, stood
    )
    return sorted([*earlier.values(), now], key=lambda one: one.day)[-DAYS_KEPT:]


def days_of(reports: Collection[Report]) -> list[Day]:
    """The history of one account, or of many as one. An account that has no line for a day
    counts as it was before, and as one thing that was not checked."""
    every_day = sorted({one.day for report in reports for one in report.history})
    together = []
    for day in every_day[-DAYS_KEPT:]:
        known = [[one for one in report.history if one.day <= day][-1:] for report in reports]
        last = [one for lines in known for one in lines]
        today = [one for one in last if one.day == day]
        found = {name: sum(one.found[name] for one in last) for name in SEVERITIES}
        gaps = sum(one.not_checked for one in today) + len(last) - len(today)
        stood = [days for one in today for days in one.stood]
        together.append(Day(day, found, gaps, sum(one.new for one in today), stood))
    return together


def days_from(entries: Iterable[dict[str, Any]]) -> list[Day]:
    """What was written of days. ValueError, TypeError or KeyError if it is no such thing."""
    days = [Day(**entry) for entry in entries]
    for one in days:
        start_of_day(one.day)
        sum([one.not_checked, one.new, *one.stood, *(one.found[name] for name in SEVERITIES)])
    return days


def read_state(file: File) -> State:
    """What was found before, by account; empty if the file is not there yet."""
    with reading(file):
        try:
            return state_from(file.read(), file)
        except FileNotFoundError:
            return State({}, {})


def state_from(data: bytes, file: File) -> State:
    """What a file holds of it."""
    try:
        state = json.loads(data)
        if (version := state["schema"]) != STATE_SCHEMA:
            raise CannotRun(f"{file} is of version {version}, this script knows {STATE_SCHEMA}")
        for entry in (one for known in state["accounts"].values() for one in known.values()):
            start_of_day(entry["first_seen"] if entry["result"] else "")
        history = state.get("history", {})  # a state of version 1.0 has none
        days = {number: days_from(entries) for number, entries in history.items()}
        return State(dict(state["accounts"]), days)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotRun(f"{file} is damaged or no state file: mend or remove it") from error


def write_state(file: File, number: str, known: Known, history: list[Day]) -> None:
    """Replace what is remembered of one account, and keep what is of others."""
    data = b""

    def with_account(before: bytes | None) -> bytes:
        nonlocal data
        state = State({}, {}) if before is None else state_from(before, file)
        each = state.history | {number: history}
        days = {account: [asdict(day) for day in lines] for account, lines in each.items()}
        accounts = state.accounts | {number: known}
        after = {"schema": STATE_SCHEMA, "accounts": accounts, "history": days}
        data = json.dumps(after, indent=1, sort_keys=True).encode()
        return data

    try:
        file.update(with_account)
    except FAILED_FILES as error:
        rescue(data or with_account(None), file, error)


# === report ===========================================================================


@dataclass(frozen=True)
class Judged:
    """The verdict on a control, how many things were looked at and how many failed."""

    verdict: str
    looked_at: int = 0
    failed: int = 0


def judge(sheet: Sheet, name: str) -> Judged:
    """The verdict of a sheet on a control. It is PASSED only where all that the control asks
    about was read; a gap that somebody accepted, or a failure, makes it ACCEPTED."""
    failed, accepted, unread = set[str](), set[str](), set[str]()
    for row in sheet.rows:
        said = [one for one in row.verdicts if one.control == name]
        if row.gap and not said and (row.target == ROOT) == (CONTROLS[name].of == ROOT):
            unread.add(row.status)
        for one in said:
            if one.word == NOT_CHECKED:
                unread.add(ACCEPTED if row.status == ACCEPTED else NOT_CHECKED)
            else:
                (accepted if row.status == ACCEPTED else failed).add(one.resource)
    looked_at, once = sheet.looked_at[name], CONTROLS[name].of
    if once and looked_at:  # what one region shows, another that is unread cannot undo
        looked_at, unread = 1, set()
    elif not sheet.whole or (once and not unread):
        unread.add(NOT_CHECKED)
    decided = ACCEPTED if accepted or unread else PASSED
    verdict = FAILED if failed else NOT_CHECKED if NOT_CHECKED in unread else decided
    return Judged(verdict, looked_at, len(failed | accepted))


def judged_together(reports: Iterable[Report]) -> dict[str, Judged]:
    """The verdicts over all accounts: of each control the worst, and the sums."""
    judged = {}
    audited = [one for one in reports if one.state == ACTIVE]
    for name in CONTROLS:
        each = [one.judged[name] for one in audited if name in one.judged]
        words = [one.verdict for one in each] + [NOT_CHECKED for one in audited if one.error]
        if each:
            looked_at, failed = sum(one.looked_at for one in each), sum(one.failed for one in each)
            judged[name] = Judged(min(words, key=VERDICTS.index), looked_at, failed)
    return judged


@dataclass
class Report:
    """An audit of one account, whole, as plain data. `number` and `name` are the account's,
    `arn` is the auditor's, `home` is the region of the account's global services. `profile`
    is what the AWS CLI needs to get there, if anything. `gone` is
    what was resolved since last time, None without a state; `history` are the last days of
    audits; `judged` are the verdicts on controls. An account that could not be
    entered has an `error` and no sheets; one whose `state` is not ACTIVE has neither."""

    number: str
    started: datetime
    arn: str = ""
    home: str = ""
    aliases: list[str] | Unanswered = field(default_factory=list)
    regions: list[str] | Unanswered = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    gone: Known | None = None
    history: list[Day] = field(default_factory=list)
    judged: dict[str, Judged] = field(default_factory=dict)
    seconds: float = 0
    path: str = ""
    profile: str = ""
    name: str = ""
    state: str = ACTIVE
    error: Unanswered | None = None

    def all_rows(self) -> list[Row]:
        return [row for sheet in self.sheets for row in sheet.rows]

    def rows(self, status: str) -> list[Row]:
        return [row for row in self.all_rows() if row.status == status]

    def gaps(self) -> list[Unanswered]:
        """What AWS did not answer, and nobody accepted."""
        unknown = [one for one in (self.aliases, self.error) if isinstance(one, Unanswered)]
        return [*unknown, *(row.gap for row in self.rows(NOT_CHECKED) if row.gap)]

    def has_expired(self) -> bool:
        return any(why.code in EXPIRED for why in self.gaps())

    def exit_code(self) -> int:
        return 3 if self.gaps() else 1 if self.rows(FINDING) else 0

    def is_calm(self) -> bool:
        """Whether there is nothing that a person should read today."""
        findings = self.rows(FINDING)
        known = self.gone is not None and not any(row.new for row in findings)
        lapsed = any(row.lapsed for row in findings)
        return not self.gaps() and not lapsed and (known or not findings)

    def badness(self) -> tuple[Any, ...]:
        """Accounts of which nothing is known come first, then those with the worst findings."""
        count = tally(self.all_rows(), with_new=False)
        numbers = (-count[severity] for severity in SEVERITIES)
        return not self.error, *numbers, -len(self.gaps()), self.number


@dataclass
class Results:
    """The report of one account, or those of several, the worst first, which belong to `of`."""

    reports: list[Report]
    started: datetime
    several: bool = False
    with_state: bool = False
    of: str = ""
    arn: str = ""
    seconds: float = 0
    path: str = ""

    def headings(self) -> dict[str, Any]:
        return {"with_new": self.with_state, "with_ok": not self.several}


def completed(sheet: Sheet, home: str, profile: str) -> Sheet:
    """The sheet as it is reported: commands are complete, and what was needed only to compare
    and to judge is gone."""
    rows = [replace(row, mend=whole_command(row, home, profile), verdicts=()) for row in sheet.rows]
    return Sheet(sheet.check, rows, whole=sheet.whole)


def whole_command(row: Row, home: str, profile: str) -> Mend:
    """The command that mends a finding, with region and profile, or why there is none.

    Whoever can name a user or a bucket must not get a command into the shell of who pastes it.
    """
    if row.status != FINDING or isinstance(row.mend, str):
        return row.mend if row.status == FINDING else ""
    region = row.cells.get("Home region") or row.cells.get("Region") or home
    words = ("aws", *row.mend, "--region", str(region))
    words += cli_option("profile", profile) if profile else ()
    text = Command(shlex.join(words))
    fits = text.isprintable() and len(text) <= MAX_TEXT
    return text if fits else "too long, or odd characters: by hand"


def command(row: Row) -> str:
    """What mends a finding, to be pasted into a shell; blank where no command does."""
    return row.mend if isinstance(row.mend, Command) else ""


REPORT_SCHEMA = 4
NOT_A_REPORT = (ValueError, KeyError, TypeError, AttributeError, OverflowError)


def as_json(report: Report) -> dict[str, Any]:
    """The whole report for machines; tests/report.schema.json describes it."""
    gone = report.gone
    return {
        "account": report.number,
        "name": report.name,
        "state": report.state,
        "error": plain(report.error),
        "aliases": plain(report.aliases),
        "audited_by": report.arn,
        "profile": report.profile,
        "home": report.home,
        "started": report.started.isoformat(),
        "duration": report.seconds,
        "regions": plain(report.regions),
        "workbook": report.path,
        "checks": [
            {
                "name": sheet.check.name,
                "title": sheet.check.title,
                "whole": sheet.whole,
                "rows": [row_as_json(sheet, row) for row in sheet.rows],
            }
            for sheet in report.sheets
        ],
        "controls": [
            {"control": name, **CONTROLS[name]._asdict(), **asdict(judged)}
            for name, judged in report.judged.items()
        ],
        "history": [asdict(one) for one in report.history],
        "resolved": gone if gone is None else [{"id": id, **gone[id]} for id in gone],
    }


def row_as_json(sheet: Sheet, row: Row) -> dict[str, Any]:
    dates = {name: one.isoformat() for name, one in row.cells.items() if isinstance(one, datetime)}
    names = ("target", "part", "severity", "control", "status", "first_seen", "new", "lapsed")
    return {
        "id": sheet.id(row),
        **{name: getattr(row, name) for name in names},
        "cells": row.cells | dates,
        "dates": [*dates],
        "result": str(row.gap or row.result),
        "brief": [*row.brief],
        "gap": plain(row.gap),
        "acceptance": plain(row.acceptance),
        "mend": command(row),
        "by_hand": "" if command(row) else row.mend,
    }


def plain(facts: Any) -> Any:
    """What AWS did not answer, or a decision, as JSON; anything else as it is."""
    return asdict(facts) if isinstance(facts, (Unanswered, Acceptance)) else facts


def report_from(one: dict[str, Any]) -> Report:
    """The report that was written as JSON, and the same again; or one of NOT_A_REPORT."""
    report = Report(
        **strings(one, "name", "state", "profile", "home"),
        number=str(one["account"]),
        arn=str(one["audited_by"]),
        path=str(one["workbook"]),
        started=datetime.fromisoformat(one["started"]).astimezone(timezone.utc),
        seconds=float(one["duration"]),
        error=gap_from(one["error"]),
        aliases=names_from(one["aliases"]),
        regions=names_from(one["regions"]),
        sheets=[*map(sheet_from, one["checks"])],
        judged={each["control"]: judged_from(each) for each in one["controls"]},
        history=days_from(one["history"]),
    )
    if one["resolved"] is not None:
        gone = {each["id"]: strings(each, "first_seen", "result") for each in one["resolved"]}
        report.gone = gone
    firsts = [row.first_seen for row in report.all_rows() if row.first_seen]
    for day in (*firsts, *(entry["first_seen"] for entry in (report.gone or {}).values())):
        start_of_day(day)
    if not 0 <= report.seconds < 1e9 or as_json(report) != one:
        raise ValueError
    return report


def judged_from(one: dict[str, Any]) -> Judged:
    verdict = VERDICTS[VERDICTS.index(one["verdict"])]
    return Judged(verdict, int(one["looked_at"]), int(one["failed"]))


def sheet_from(one: dict[str, Any]) -> Sheet:
    (what,) = (what for what in CHECKS if what.name == one["name"])
    return Sheet(what, [*map(row_from, one["rows"])], whole=bool(one["whole"]))


def row_from(one: dict[str, Any]) -> Row:
    (start, what, end), decision = map(str, one["brief"]), one["acceptance"]
    if one["severity"] not in ("", *SEVERITIES):
        raise ValueError
    cells: dict[str, Any] = {
        name: cell if isinstance(cell, int) or cell is None else str(cell)
        for name, cell in one["cells"].items()
    }
    dates = {name: datetime.fromisoformat(cells[name]) for name in one["dates"]}
    return Row(
        **strings(one, "target", "part", "severity", "control", "first_seen"),
        cells=cells | dates,
        result="" if one["gap"] else str(one["result"]),
        gap=gap_from(one["gap"]),
        brief=(start, what, end),
        mend=Command(one["mend"]) or str(one["by_hand"]),
        new=bool(one["new"]),
        acceptance=Acceptance(**strings(decision, *decision)) if decision else None,
        lapsed=bool(one["lapsed"]),
    )


def strings(one: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: str(one[name]) for name in names}


def gap_from(one: dict[str, str] | None) -> Unanswered | None:
    return Unanswered(**strings(one, *one)) if one else None


def names_from(one: list[str] | dict[str, str]) -> list[str] | Unanswered:
    return gap_from(one) or [] if isinstance(one, dict) else [*map(str, one)]


class Found(NamedTuple):
    """A row, and where it was found."""

    report: Report
    sheet: Sheet
    row: Row

    def rank(self) -> int:
        return GRADES.index(self.row.grade)


Tables = dict[Check, list[Found]]


def tables_of(reports: Iterable[Report]) -> Tables:
    """The rows of one report, or of many, by check, the most serious first."""
    tables: Tables = defaultdict(list)
    for report in reports:
        for sheet in report.sheets:
            tables[sheet.check] += [Found(report, sheet, row) for row in sheet.rows]
    return {what: sorted(found, key=Found.rank) for what, found in tables.items()}


def worst(tables: Tables, status: str) -> list[tuple[int, Found]]:
    """The rows of a status, the most serious first, with their places on their sheets."""
    places = (pair for found in tables.values() for pair in enumerate(found))
    return sorted((p for p in places if p[1].row.status == status), key=lambda p: p[1].rank())


def things(found: Iterable[tuple[int, Found]]) -> list[list[tuple[int, Found]]]:
    """Rows in their order, those about one thing together where its first one stands."""
    grouped: dict[Any, list[tuple[int, Found]]] = defaultdict(list)
    for place, one in found:
        of = (one.sheet.check, one.report.number, *one.sheet.check.names(one.row))
        grouped[of].append((place, one))
    return [*grouped.values()]


def tally(rows: Iterable[Row], with_new: bool, with_ok: bool = True) -> dict[str, int]:
    """How many rows there are of each grade, under the headings of the tables."""
    number: Counter[str] = Counter()
    for row in rows:
        number.update([row.grade, *([NEW] if row.new and row.status == FINDING else [])])
    others = [*([NEW] if with_new else []), *([OK] if with_ok else []), ACCEPTED, NOT_CHECKED]
    return {heading: number[heading] for heading in (*SEVERITIES, *others)}


# === words ============================================================================

MEANING = {
    FINDING: "A person should act.",
    NOT_CHECKED: "AWS did not let the script look. Nothing is known of what is there.",
    ACCEPTED: "A finding, or a gap, that somebody decided to live with, and why.",
    OK: "Looked at, nothing wrong.",
}
PAINT = {CRITICAL: "1;31", HIGH: "31", NEW: "1", NOT_CHECKED: "7"}  # for terminals


def result_words(row: Row) -> str:
    """What was found or could not be read, and what somebody decided about it."""
    return f"{row.gap or row.result}{decision_words(row)}"


def decision_words(row: Row) -> str:
    if not (one := row.acceptance):
        return ""
    words = f"until {one.until}: {one.reason}" if one.until else one.reason
    return f" ({'acceptance expired,' if row.lapsed else 'accepted'} {words})"


def thing_words(found: Sequence[Found], several: bool) -> str:
    """What was found about one thing, as people name it."""
    (report, sheet, row), number = found[0], len(found)
    same: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in found:
        start, what, end = one.row.brief if any(one.row.brief) else (one.row.result, "", "")
        same[start, end].append(what)
    clauses = [f"{start}{in_words(what)}{end}" for (start, end), what in same.items()]
    words = "; ".join([*clauses[:2], *(["and more"] if clauses[2:] else [])])
    name, *rest = sheet.check.names(row) or [""]
    rest += [report.number, report.name] if several else []
    rest += [counted(number, sheet.check.kind)] if number > 1 else []
    behind = f" ({', '.join(filter(None, rest))})" if any(rest) else ""
    return f"{name}: {words}{behind}"[0 if name else 2 :] + decision_words(row)


def mend_words(row: Row) -> str:
    """The command that mends a finding, or why there is none."""
    return command(row) or (f"({row.mend})" if row.mend else "")


def needed(why: Unanswered | None) -> str:
    """What to do about a refusal."""
    if not why or not why.permission:
        return ""
    trust = ", and a trust policy that lets us in" if why.operation == "AssumeRole" else ""
    return f" (needs {why.permission}{trust})"


def texts(names: list[str] | Unanswered) -> list[str]:
    return [f"{NOT_CHECKED}: {names}"] if isinstance(names, Unanswered) else names


def headline(results: Results) -> str:
    found = [row for report in results.reports for row in report.rows(FINDING)]
    findings = counted(len(found), "finding")
    gaps = sum(len(report.gaps()) for report in results.reports)
    if results.with_state:
        gone = sum(len(report.gone or ()) for report in results.reports)
        findings += f" ({sum(row.new for row in found):,} new, {gone:,} resolved)"
    return f"{findings}, {f'{gaps:,} {NOT_CHECKED}' if gaps else 'everything was checked'}"


BLOCKS = " ▏▎▍▌▋▊▉█"


def bar(number: int, most: int, places: int) -> str:
    """A bar of block characters, so long that `most` fills the places."""
    whole, eighths = divmod(round(8 * places * number / max(most, 1)), 8)
    return BLOCKS[8] * whole + (BLOCKS[eighths] if eighths else "")


def bars(days: Sequence[Day], places: int) -> list[str]:
    """The open findings of each day as a bar, to one scale."""
    totals = [sum(one.found.values()) for one in days]
    return [bar(total, max(totals), places) for total in totals]


def stood_words(days: Iterable[Day]) -> str:
    """How long findings stood that are gone."""
    stood = sorted(number for one in days for number in one.stood)
    if not stood:
        return ""
    median = counted(stood[(len(stood) - 1) // 2], "day")
    if len(stood) == 1:
        return f"The finding that was resolved had stood for {median}"
    return f"Half of the {len(stood):,} findings that were resolved had stood for {median} or less"


def trend(days: Sequence[Day], today: str) -> list[str]:
    """The last audit and this one, if this one is a line of the history."""
    last = [*zip(days, bars(days, 40), strict=True)][-2:]
    return [
        f"{one.day}  {counted(sum(one.found.values()), 'finding'):>15}  {blocks}"
        for one, blocks in (last if len(last) > 1 and days[-1].day == today else ())
    ]


def accounts_words(reports: list[Report]) -> str:
    """How many were audited, and how many were not, and why."""
    fate = Counter(NOT_CHECKED if one.error else one.state for one in reports)
    audited = f"{fate.pop(ACTIVE, 0):,} audited"
    return ", ".join([audited, *(f"{number:,} {state}" for state, number in fate.items())])


def facts(results: Results) -> dict[str, str]:
    """The run in words."""
    took = f"{results.seconds:.0f} s"
    when = {"Started": f"{results.started:%Y-%m-%d %H:%M} UTC", "Duration": took}
    if results.several:
        who = {"Accounts": accounts_words(results.reports), "Of": results.of}
        return who | {"Audited by": results.arn} | when
    (report,) = results.reports
    who = {"Account": report.number, "Alias": ", ".join(texts(report.aliases))}
    return who | {"Audited by": report.arn} | when | {"Regions": ", ".join(texts(report.regions))}


def what_happened(report: Report) -> str:
    """How the audit of one account among several went."""
    if report.error:
        return f"{report.error}{needed(report.error)}"
    if report.state != ACTIVE:
        return f"{report.state}: cannot be audited"
    how = "credentials expired after" if report.has_expired() else "audited in"
    return f"{how} {report.seconds:.0f} s"


def terminal_text(results: Results, colour: bool = False) -> str:
    """What is printed: a table of 80 columns, the path last so that it can be copied."""
    tables = tables_of(results.reports)
    table = (
        account_table(results, colour) if results.several else check_table(results, tables, colour)
    )

    def told(title: str, found: Iterable[tuple[int, Found]], most: int = 10) -> list[str]:
        groups = [[one for _, one in group] for group in things(found)]
        lines = [
            f"{group[0].row.severity:8}  {thing_words(group, results.several)}" for group in groups
        ]
        return some_lines(title, lines, most)

    found = worst(tables, FINDING)
    gone = [
        f"{entry['result']} ({report.number + '/' if results.several else ''}{id})"
        for report in results.reports
        for id, entry in (report.gone or {}).items()
    ]
    ending = [
        *told("Worst", found, 5),
        *told("New", [pair for pair in found if pair[1].row.new]),
        *told("Acceptance expired", [pair for pair in found if pair[1].row.lapsed]),
        *some_lines("Resolved", gone, 10),
        results.path,
    ]
    history = trend(days_of(results.reports), f"{results.started:%Y-%m-%d}")
    return "\n".join([*table, "", headline(results), *history, *ending])


def check_table(results: Results, tables: Tables, colour: bool) -> list[str]:
    (report,) = results.reports
    alias = f" ({', '.join(texts(report.aliases))})" if report.aliases else ""
    lines = [f"AWS account {report.number}{alias}", ""]
    lines.append(" " * 16 + number_cells(tally([], **results.headings()), names=True))
    for what, found in tables.items():
        count = tally((one.row for one in found), **results.headings())
        lines.append(f"{what.title:16}" + number_cells(count, colour))
    return lines


def account_table(results: Results, colour: bool) -> list[str]:
    """A line an account, twenty at most."""
    lines = [f"{results.of}: {accounts_words(results.reports)}", ""]
    for n, report in enumerate(results.reports[:20]):
        count = tally(report.all_rows(), **results.headings())
        del count[ACCEPTED]  # to stay within 80 columns
        if n == 0:
            lines.append(" " * 33 + number_cells(count, names=True))
        audited = report.state == ACTIVE and not report.error
        end = number_cells(count, colour) if audited else what_happened(report)[:47]
        lines.append(f"{report.number:12} {fitted(report.name, 19)} {end}")
    more = len(results.reports) - 20
    return [*lines, f"and {more:,} more accounts"] if more > 0 else lines


def some_lines(title: str, lines: list[str], most: int) -> list[str]:
    """A few lines under a title, folded to 80 columns, and how many more."""
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    folded = (folds for line in [*lines[:most], *more] for folds in fold(line))
    return [f"{title}:", *folded] if lines else []


def fold(text: str) -> list[str]:
    """The text in lines of 80 columns. A wide character takes two, so it is folded with a
    placeholder behind it."""
    padded = "".join(f"{char}\0" if width(char) == 2 else char for char in printable(text))
    lines = textwrap.wrap(padded, 80, initial_indent="  ", subsequent_indent=" " * 12,
        break_on_hyphens=False)  # fmt: skip
    return [line.replace("\0", "") for line in lines]


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def width(char: str) -> int:
    """How many places a character takes on a terminal."""
    return 0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1


def fitted(text: str, places: int) -> str:
    """The text cut or filled to a number of places on a terminal."""
    shown = ""
    for char in printable(text):
        if width(char) > places:
            break
        shown, places = shown + char, places - width(char)
    return shown + " " * places


def number_cells(count: dict[str, int], colour: bool = False, names: bool = False) -> str:
    """The numbers in columns, or the names above them."""
    cells = []
    for column, number in count.items():
        cell = f"{column if names else number or '-':>{max(len(column), 5) + 1}}"
        paint = PAINT.get(column) if colour and number else None
        cells.append(f"\x1b[{paint}m{cell}\x1b[0m" if paint else cell)
    return "".join(cells)


# === workbook =========================================================================

WIDTHS = {  # characters
    "Account name": 12, "Group name": 14, "Ports": 14, "Open to": 14, "Used by": 12,
    "Blocked by": 12, "User": 28, "Bucket": 30, "Grantee": 18, "Result": 36, "ID": 40,
    "What it asks": 52, "Finding": 52,
}  # fmt: skip
WIDTH = 24  # of other columns; longer text wraps
LETTERS = 1.2  # a letter is narrower than a digit, by which the format measures
UNWRAPPED = ("ID", "VPC", "Owner", "Grantee", MEND)  # ends of headers: no words to wrap at
CHARACTER = 270  # the width of a digit, in the units of the format, of which a point has 48.8
PAPER = 785  # points between the margins of a landscape A4 page, but for a little
SMALLEST = 70  # per cent: 7 points of 10
ACROSS = 11  # the last column of the Summary
TOP = 3  # rows above the first of a table: title, note, header

LOOKS = {
    CRITICAL: "font: bold on; pattern: pattern solid, fore_colour coral",
    HIGH: "font: bold on; pattern: pattern solid, fore_colour tan",
    MEDIUM: "font: bold on; pattern: pattern solid, fore_colour light_yellow",
    LOW: "pattern: pattern solid, fore_colour ice_blue",
    FINDING: "font: bold on",
    NOT_CHECKED: "font: colour white, bold on; pattern: pattern solid, fore_colour gray80",
    ACCEPTED: "font: colour gray50, italic on",
    OK: "font: colour green",
    PASSED: "font: colour green",
    FAILED: "font: colour dark_red, bold on",
    NEW: "font: bold on; pattern: pattern solid, fore_colour light_turquoise",
    "header": "font: bold on; pattern: pattern solid, fore_colour gray25",
    "link": "font: colour blue, underline single",
    "cell": "font: bold off",
    "command": "font: name Courier New, colour gray80",
    "code": "font: name Courier New, colour gray80, height 160",
    "title": "font: bold on, height 320",
    "note": "font: italic on",
    "jump": "font: colour blue, underline single",
    "section": "font: bold on, height 240",
    "bar": "font: colour dark_blue",
}
FREE = ("title", "note", "jump", "section", "bar")  # what may run over its cell, and has no lines
CONSOLES = {
    "cn-": "console.amazonaws.cn",
    "us-gov-": "console.amazonaws-us-gov.com",
    "": "console.aws.amazon.com",
}

Line = tuple[list[Cell], str, dict[int, str]]  # cells, look, links by column
Beside = tuple[str, str, str, str]  # a word, the text beside it, where it leads, what mends it


def add_links(sheet: Any, links: list[tuple[int, int, str]]) -> None:
    """Put links (row, column, target) on a sheet, as HLINK records, which xlwt cannot write: a
    formula in their place would have no value for those who read the file without Excel.
    `#Sheet!A1` is a place in the workbook, a name without `:` a file in the same folder.

    [MS-XLS] 2.4.140, [MS-OSHARED] 2.3.7
    """
    records = []
    for row, column, target in links:
        text = (target.removeprefix("#") + "\0").encode("utf-16-le")
        if target.startswith("#"):
            kind, link = 8, struct.pack("<I", len(text) // 2) + text
        elif ":" in target:
            moniker = bytes.fromhex("E0C9EA79F9BACE118C8200AA004BA90B")
            kind, link = 3, moniker + struct.pack("<I", len(text)) + text
        else:
            moniker = bytes.fromhex("0303000000000000C000000000000046")
            path, end = target.encode() + b"\0", struct.pack("<HH20xI", 0xFFFF, 0xDEAD, 0)
            kind, link = 1, moniker + struct.pack("<HI", 0, len(path)) + path + end
        place = struct.pack("<HHHH", row, row, column, column)
        start = place + bytes.fromhex("D0C9EA79F9BACE118C8200AA004BA90B")
        data = start + struct.pack("<II", 2, kind) + link
        records.append(struct.pack("<HH", 0x01B8, len(data)) + data)
    plain = sheet.get_biff_data()
    whole = b"".join((plain[:-4], *records, plain[-4:]))  # before the end record
    sheet.get_biff_data = lambda: whole


def set_paper(book: Any, areas: Sequence[tuple[int, int]]) -> None:
    """Print of each sheet only what is above and left of its last row and column, and the header
    again on every page of all but the first: built-in names of each sheet, Print_Area and
    Print_Titles, which xlwt cannot write.

    [MS-XLS] 2.4.150
    """
    names = b""
    book.setup_ownbook()
    refs = book._Workbook__sheet_refs
    for sheet, (row, column) in enumerate(areas):
        ref = refs.setdefault((book._ownbook_supbookx, sheet, sheet), len(refs))
        for name, place in ((6, (0, row, 0, column)), (7, (TOP - 1, TOP - 1, 0, 255)))[: sheet + 1]:
            area = struct.pack("<BHHHHH", 0x3B, ref, *place)
            data = struct.pack("<HBBHHHIBB", 0x20, 0, 1, len(area), 0, sheet + 1, 0, 0, name) + area
            names += struct.pack("<HH", 0x18, len(data)) + data
    links = book._Workbook__all_links_rec
    book._Workbook__all_links_rec = lambda: links() + names


@functools.cache
def style(look: str, right: bool = False, date: bool = False, wrap: bool = True) -> xlwt.XFStyle:
    """One of LOOKS. The format allows 4,094 styles in a workbook, so they are shared."""
    import xlwt

    align = f"alignment: vertical top, horizontal {'right' if right else 'left'}"
    wrapped = ", wrap on" if wrap and look not in (*FREE, "command", "code") else ""
    lines = "" if look in (*FREE, "code") else "; borders: bottom hair, bottom_colour gray40"
    form = "yyyy-mm-dd" if date else "General"
    return xlwt.easyxf(f"{LOOKS[look]}; {align}{wrapped}{lines}", num_format_str=form)


def heads_numbers(header: str) -> bool:
    """Whether a column counts something, or has a unit."""
    counts = (*GRADES, FINDING, NEW, "Resolved", "Looked at", "Failed", "Accounts failed")
    return header in counts or header.endswith("(days)")


def clean(value: Cell) -> Cell:
    """What the format can hold: dates without a zone (UTC), text of limited length."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).replace(tzinfo=None)
    if isinstance(value, str):
        text = value.encode("utf-16", "replace").decode("utf-16")
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return "" if value is None else value


class Page:
    """A worksheet that is written from top to bottom; closing it sets widths and links. It has
    the columns of `header`, or is the Summary."""

    def __init__(self, book: xlwt.Workbook, title: str, footer: str, header: list[str]) -> None:
        self.sheet, self.next, self.header = book.add_sheet(title), 0, header
        self.widths: Counter[int] = Counter()
        self.links: list[tuple[int, int, str]] = []
        self.last = ACROSS  # column on paper
        self.sheet.portrait = not header
        self.sheet.header_str, self.sheet.footer_str = b"", f"&L{footer}&R&P / &N".encode()

    def write(self, values: Iterable[Cell], look: str = "", links: Any = None) -> None:
        """A row, with links by column. Without a look, words that are a severity, a status or a
        verdict have their own, as has what is new."""
        lines = 1
        for column, value in enumerate(values):
            own, name = look or self.look_of(value), self.header[column] if self.header else ""
            if target := (links or {}).get(column):
                self.links.append((self.next, column, target))
                own = "jump" if look in FREE else "link"
            text, date = str(value), isinstance(value, datetime)
            bare = " " not in text or name == MEND
            wrap = not date and not (bare and name.endswith(UNWRAPPED))
            right = isinstance(value, int) or (own == "header" and heads_numbers(text))
            if value or own not in FREE:
                self.sheet.write(self.next, column, clean(value), style(own, right, date, wrap))
            if own not in FREE:
                most, wide = WIDTHS.get(name, WIDTH), own == "header" or text.isupper()
                width = 10 if date else min(int(len(text) * (1.25 if wide else 1)) + 1, most)
                self.widths[column] = max(self.widths[column], width)
                if wrap:
                    lines = max(lines, math.ceil(len(text) / most / LETTERS))
        self.end_row({"title": 440, "section": 340}.get(look, 270 * min(lines, 20)))

    def look_of(self, value: Cell) -> str:
        if value in (*GRADES, FINDING, PASSED, FAILED):
            return str(value)
        starts = {"aws ": "command", f"{NEW.upper()}: ": NEW}
        return next((look for word, look in starts.items() if str(value).startswith(word)), "cell")

    def end_row(self, height: int) -> None:
        self.sheet.row(self.next).height_mismatch = True
        self.sheet.row(self.next).height = height
        self.next += 1

    def write_beside(self, text: str, look: str, height: int) -> None:
        """Text over all columns but the first."""
        self.sheet.write_merge(self.next, self.next, 1, ACROSS, clean(text), style(look))
        self.end_row(height)

    def section(self, title: str, lines: Sequence[Beside]) -> None:
        """A title, and under it words with their looks, which may be links, with text beside
        them that is as high as it needs: LibreOffice does not wrap a link. Of a command one
        line is shown: who copies the cell gets all of it."""
        self.next += 1
        self.write([title if lines else f"{title}: none"], "section")
        for word, text, target, mend in lines:
            look = self.look_of(word)
            if target:
                self.links.append((self.next, 0, target))
                look = "link" if look == "cell" else look
            self.sheet.write(self.next, 0, word, style(look))
            self.write_beside(text, "cell", 270 * max(len(textwrap.wrap(text, 115)), 1))
            if mend:
                self.write_beside(mend, "code", 230)

    def close(self) -> None:
        for column, width in self.widths.items():
            self.sheet.col(column).width = CHARACTER * max(width, 6)
        if self.header:
            self.fit()
        else:
            self.sheet.fit_num_pages = self.sheet.fit_height_to_pages = 1
        add_links(self.sheet, self.links)

    def fit(self) -> None:
        """Leave out of the print the columns on the right, as many as must be for letters of
        seven points. What is still too wide goes on to a second page."""
        points = [self.sheet.col(column).width / 48.8 for column in range(len(self.header))]
        fits = [total * SMALLEST <= 100 * PAPER for total in accumulate(points)]
        never, spare = ("ID", MEND), ("First seen", "Control", "Status")
        self.last = len(points) - 1
        while (name := self.header[self.last]) in never or (name in spare and not fits[self.last]):
            self.last -= 1
        self.sheet.fit_num_pages = self.sheet.fit_width_to_pages = int(fits[self.last])
        self.sheet.fit_height_to_pages, self.sheet.print_scaling = 0, SMALLEST


class Book:
    """A workbook that is written sheet by sheet; `footer` stands under every printed page."""

    def __init__(self, footer: str) -> None:
        import xlwt

        self.book, self.footer = xlwt.Workbook(encoding="utf-8"), footer
        self.pages: list[Page] = []

    def page(self, title: str, header: list[str]) -> Page:
        self.pages.append(page := Page(self.book, title, self.footer, header))
        return page

    def table(self, title: str, about: str, docs: str, header: list[str], lines: Any) -> None:
        """One sheet, continued on others where the format's number of rows runs out."""
        pages: list[Page] = []
        for cells, look, links in lines:
            if not pages or pages[-1].next == MAX_ROWS:
                pages.append(page := self.page(page_title(title, len(pages)), header))
                back, last = header.index("Result"), len(header) - 1
                over = {0: title, back: "Summary", last: docs and "AWS documentation"}
                top, jumps = [over.get(n, "") for n in range(len(header))], {last: docs}
                page.write(top, "title", jumps | {back: "#Summary!A1"})
                advice = f" {MEND}: read a command first, what it closes may be in use."
                page.write([about + (advice if MEND in header else "")], "note")
                page.write(header, "header")
                page.sheet.panes_frozen, page.sheet.horz_split_pos = True, TOP
            pages[-1].write(cells, look, links)
        for page in pages:
            page.close()

    def data(self) -> bytes:
        """The bytes of the file."""
        set_paper(self.book, [(page.next - 1, page.last) for page in self.pages])
        file = io.BytesIO()
        self.book.save(file)
        return file.getvalue()


def page_title(title: str, number: int) -> str:
    return f"{title} ({number + 1})" if number else title


def console_link(what: Check, column: str, row: Row, home: str) -> str:
    """The page in the AWS console of what a cell names, blank if there is none."""
    named = {name: str(row.cells.get(name, "")) for name in what.columns}
    if not named[column] or column not in what.links or named[column] == ROOT:
        return ""
    region = named.get("Region") or home
    console = next(host for start, host in CONSOLES.items() if region.startswith(start))
    quoted = {name: quote(value, safe="", errors="replace") for name, value in named.items()}
    return f"https://{region}.{console}/{what.links[column].format_map(quoted)}"


def header_of(what: Check, with_state: bool, several: bool = False) -> list[str]:
    account = ["Account", "Account name"] if several else []
    seen = ["First seen"] if with_state else []
    return [*account, *what.columns, "Result", "Severity", "Status", "Control", *seen, MEND, "ID"]


def sheet_lines(found: Iterable[Found], header: list[str]) -> Iterator[Line]:
    """The rows as cells under a header, in the order in which they come."""
    for report, sheet, row in found:
        cells: dict[str, Cell] = row.cells | {
            "Account": report.number,
            "Account name": report.name,
            "Result": f"NEW: {result_words(row)}" if row.new else result_words(row),
            "Severity": row.severity,
            "Status": row.status,
            "Control": row.control,
            "First seen": start_of_day(row.first_seen) if row.first_seen else "",
            MEND: mend_words(row),
            "ID": sheet.id(row),
        }
        pages = {
            name: console_link(sheet.check, name, row, report.home) for name in sheet.check.links
        }
        links = {header.index(name): page for name, page in pages.items()}
        look = ACCEPTED if row.status == ACCEPTED else ""
        yield [cells.get(name, "") for name in header], look, links


def resolved_lines(results: Results, header: list[str]) -> Iterator[Line]:
    gone = [(report, *one) for report in results.reports for one in (report.gone or {}).items()]
    for report, id, entry in gone:
        first = start_of_day(entry["first_seen"])
        stood = (report.started - first).days
        cells: list[Cell] = [report.number, report.name, id, entry["result"], first, stood]
        yield cells[-len(header) :], "", {}
    if not gone:
        yield ["Nothing was resolved since last time"], "", {}


def account_lines(results: Results, header: list[str]) -> Iterator[Line]:
    """A line an account, with a link to its workbook if that is in the same folder."""
    for report in results.reports:
        beside = report.path and Path(report.path).parent == Path(results.path).parent
        unknown = NOT_CHECKED if report.gaps() else OK
        status = FINDING if report.rows(FINDING) else unknown
        cells: dict[str, Cell] = {
            "Account": report.number,
            "Name": report.name,
            "Alias": ", ".join(texts(report.aliases)),
            "Result": what_happened(report),
            "Status": status if report.state == ACTIVE else report.state,
            "Workbook": "open" if beside else report.path,
            "Resolved": len(report.gone or ()) or "",
            **{name: n or "" for name, n in tally(report.all_rows(), with_new=True).items()},
            NOT_CHECKED: len(report.gaps()) or "",
        }
        file = Path(report.path).name if beside else ""
        yield [cells.get(name, "") for name in header], "", {len(header) - 1: file}


def control_lines(reports: Collection[Report], header: list[str]) -> Iterator[Line]:
    """A line a control, with a link to the sheet that decides it."""
    by_control = {name: what for what in CHECKS for name in what.controls}
    for name, judged in judged_together(reports).items():
        control, title = CONTROLS[name], by_control[name].title
        failing = [one for one in reports if name in one.judged and one.judged[name].failed]
        cells: dict[str, Cell] = {
            "Control": name,
            "What it asks": control.asks,
            "Severity": control.severity,
            "Result": judged.verdict,
            "Looked at": judged.looked_at,
            "Failed": judged.failed,
            "Accounts failed": len(failing),
            "CIS 5.0.0": control.cis_5,
            "CIS 3.0.0": control.cis_3,
            "PCI DSS 4.0.1": control.pci,
            "Sheet": title,
        }
        yield [cells[name] for name in header], "", {len(header) - 1: f"#'{title}'!A1"}


def write_summary(book: Book, results: Results, tables: Tables) -> None:
    """The first page: the run in words, a line a check, and what to look at first."""
    page = book.page("Summary", [])
    page.write(["AWS security check"], "title")
    page.write([headline(results)], "note")
    page.next += 1
    page.write(["Check", *tally([], **results.headings())], "header")
    for what, found in tables.items():
        counts = tally((one.row for one in found), **results.headings()).values()
        page.write([what.title, *(n or "" for n in counts)], links={0: f"#'{what.title}'!A1"})
    if results.several:
        all_rows = (row for report in results.reports for row in report.all_rows())
        page.write(["All", *(n or "" for n in tally(all_rows, **results.headings()).values())])
    page.section("Worst findings", few(told_beside(things(worst(tables, FINDING)), results)))
    unread = told_beside(([one] for one in worst(tables, NOT_CHECKED)), results)
    page.section("Not checked", [*few([*not_entered(results), *unread]), *to_add(results)])
    write_history(page, days_of(results.reports))
    places = {"Accounts": "#Accounts!A1"}
    told = [(name, fact, places.get(name, ""), "") for name, fact in facts(results).items()]
    page.section("The audit", told)
    page.section("What a status means", [(*one, "", "") for one in MEANING.items()])
    page.close()


def write_history(page: Page, days: list[Day]) -> None:
    """Whether it gets better: a line a day, with a bar to scale."""
    if not days:
        return
    page.next += 1
    page.write(["Audit of", *SEVERITIES, NEW, "Resolved", NOT_CHECKED, "Findings"], "header")
    for one, blocks in zip(days, bars(days, 24), strict=True):
        numbers = (*(one.found[name] for name in SEVERITIES), one.new, len(one.stood))
        page.write([start_of_day(one.day), *(n or "" for n in (*numbers, one.not_checked))])
        page.next -= 1
        page.write([*[""] * 8, f"{blocks} {sum(one.found.values()):,}"], "bar")
    if words := stood_words(days):
        page.write([words], "note")


def told_beside(groups: Iterable[list[tuple[int, Found]]], results: Results) -> Iterator[Beside]:
    """Rows in words, each of which leads to where the first stands, and what mends that."""
    for group in groups:
        place, (report, sheet, row) = group[0]
        words = thing_words([one for _, one in group], results.several)
        if row.gap:
            account = f", {report.number} {report.name}" if results.several else ""
            words = f"{sheet.check.title}: {result_words(row)}{needed(row.gap)}, {row.id}{account}"
        number, line = divmod(place, MAX_ROWS - TOP)
        target = f"#'{page_title(sheet.check.title, number)}'!A{TOP + 1 + line}"
        yield row.severity or row.status, words, target, command(row)


def not_entered(results: Results) -> Iterator[Beside]:
    for n, one in enumerate(results.reports, TOP + 1):
        if one.error:
            words = f"{one.number} {one.name}: {what_happened(one)}".strip()
            yield NOT_CHECKED, words, f"#Accounts!A{n}", ""


def few(lines: Iterable[Beside]) -> list[Beside]:
    """The first ten, and how many more there are."""
    known = [*lines]
    more = [("", f"and {len(known) - 10:,} more", "", "")] if len(known) > 10 else []
    return [*known[:10], *more]


def to_add(results: Results) -> Iterator[Beside]:
    """What to add to the policy for the calls that were denied, if any was."""
    gaps = [why for report in results.reports for why in report.gaps()]
    if actions := sorted({why.permission for why in gaps if why.permission}):
        statement = json.dumps({"Effect": "Allow", "Action": actions, "Resource": "*"})
        yield MEND, f"add to the policy: {statement}", "", ""


def book_of(results: Results) -> bytes:
    """The workbook of an account, or the overview of several, as the bytes of its file."""
    tables = tables_of(results.reports)
    whose = results.of if results.several else f"AWS account {results.reports[0].number}"
    book = Book(f"{whose}, {results.started:%Y-%m-%d}")
    write_summary(book, results, tables)
    if results.several:
        news = [NEW, "Resolved"] if results.with_state else []
        header = ["Account", "Name", "Alias", *SEVERITIES, *news, NOT_CHECKED, "Result", "Status"]
        about, header = "Every account, the worst first.", [*header, "Workbook"]
        book.table("Accounts", about, "", header, account_lines(results, header))
    for what, found in tables.items():
        header = header_of(what, results.with_state, results.several)
        nothing: Line = [f"Nothing in {counted(len(results.reports), 'account')}"], "", {}
        lines = sheet_lines(found, header) if found else [nothing]
        book.table(what.title, what.about, what.docs, header, lines)
    if any(report.judged for report in results.reports):
        header = ["Control", "What it asks", "Severity", "Result", "Looked at", "Failed"]
        header += ["Accounts failed"] if results.several else []
        header += ["CIS 5.0.0", "CIS 3.0.0", "PCI DSS 4.0.1", "Sheet"]
        about = "Controls of AWS Security Hub that the checks decide, by the rules of Security Hub."
        book.table("Controls", about, HUB, header, control_lines(results.reports, header))
    if results.with_state:
        header = ["Account", "Account name"] if results.several else []
        header += ["Finding", "Result", "First seen", "Stood (days)"]
        about = "Findings of the last report that are gone."
        book.table("Resolved", about, "", header, resolved_lines(results, header))
    return book.data()


def alone(report: Report) -> Results:
    with_state = report.gone is not None
    return Results(
        [report], report.started, False, with_state, seconds=report.seconds, path=report.path
    )


def workbook(report: Report) -> bytes:
    return book_of(alone(report))


def as_csv(sheet: Sheet, report: Report) -> bytes:
    """A sheet as CSV. A cell that a spreadsheet would take for a formula gets a quote."""
    file = io.StringIO()
    table = csv.writer(file)
    header = header_of(sheet.check, report.gone is not None)
    table.writerow(header)
    (found,) = tables_of([replace(report, sheets=[sheet])]).values()
    for cells, _, _ in sheet_lines(found, header):
        days = (f"{cell:%Y-%m-%d}" if isinstance(cell, datetime) else str(cell) for cell in cells)
        table.writerow(f"'{text}" if text[:1] in tuple("=+-@\t\r") else text for text in days)
    return file.getvalue().encode("utf-8-sig")


# === streams ==========================================================================


def say(text: str, stream: TextIO | Any = None) -> None:
    """Print, whatever has become of the stream: a reader that went away undoes no audit."""
    stream = stream or sys.stdout
    if stream is None:  # closed by who started us
        return
    try:
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except OSError:  # or the interpreter complains again when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(text: str) -> None:
    say(f"security_check.py: {text}", sys.stderr)


def show_progress(started: float, wanted: bool, text: str) -> None:
    """A line that stays where it is, for somebody who waits at a terminal."""
    if wanted and sys.stderr and sys.stderr.isatty():
        seconds = f"{time.monotonic() - started:.0f} s"
        sys.stderr.write(f"\r\x1b[K{text[:68]}  {seconds}" if text else "\r\x1b[K")
        sys.stderr.flush()


def redacted(record: logging.LogRecord) -> bool:
    """Take the session token and signatures out of botocore's log."""
    text = re.sub(r"(?i)(token|signature)(\W{1,6})[^\s'\",&]+", r"\1\2***", record.getMessage())
    record.msg, record.args = text, ()
    return True


def log_calls(wanted: bool) -> None:
    """botocore's log on standard error, but for what was answered: it holds reports."""
    logging.getLogger("botocore").setLevel(logging.DEBUG if wanted else logging.NOTSET)
    if not wanted:
        return
    handler = logging.StreamHandler()
    handler.addFilter(redacted)
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(name)s %(message)s")
    for secretive in ("botocore.auth", "botocore.parsers", "botocore.hooks"):
        logging.getLogger(secretive).setLevel(logging.INFO)


# === arguments ========================================================================

EPILOG = """\
(*) may be repeated. The checks are:
  {checks}

exit codes:
  0  everything was checked, nothing found
  1  everything was checked, there are findings
  2  could not start or could not write; no report
  3  the report is written, but something was NOT CHECKED

Credentials, regions and proxies are configured as for the AWS CLI."""


def like(pattern: str, what: str) -> Callable[[str], str]:
    """A type of argument, for argparse."""

    def checked(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return text

    return checked


ACCOUNT = like(r"\d{12}", "an account number of twelve digits")
DAYS = like(r"\d{1,5}", "a number of days")
# https://docs.aws.amazon.com/IAM/latest/APIReference/API_Role.html
ROLE_NAME = like(r"/?([!-.0-~]+/)*[\w+=,.@-]{1,64}", "the name of a role")

MARK = re.compile(r"\{(?!account\}|date\}|time\}).*?\}")


def name_of(what: str) -> Callable[[str], str]:
    """A type of argument: the name of a file or a folder, here or in S3."""

    def checked(text: str) -> str:
        if mark := MARK.search(text):
            why = f"{mark[0]}: only {{account}}, {{date}} and {{time}} are filled in"
            raise argparse.ArgumentTypeError(why)
        match = S3_NAME.fullmatch(text)
        key = "" if match is None else match[2] or ""
        if text.startswith("s3:") and (not match or (what == "file" and key[-1:] in ("", "/"))):
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a {what} in S3")
        return text

    return checked


FILE = name_of("file")
FOLDER = name_of("folder")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [what.name for what in CHECKS]
    parser = argparse.ArgumentParser(
        prog="security_check.py",
        description="Audit an AWS account with read-only checks, and write a workbook.",
        epilog=EPILOG.format(checks=", ".join(names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    several: dict[str, Any] = {"action": "append", "default": []}
    file: dict[str, Any] = {"metavar": "FILE", "type": FILE}
    add = parser.add_argument
    add("--profile", **several, metavar="NAME", help="a profile of the AWS configuration (*)")
    add("--organization", action="store_true", help="audit every account of the organization")
    add("--account", **several, metavar="NUMBER", type=ACCOUNT,
        help="audit this account, or of the organization only this (*)")  # fmt: skip
    add("--role", metavar="NAME", type=ROLE_NAME, default=ROLE,
        help="the role to assume in other accounts (%(default)s)")  # fmt: skip
    add("--region", **several, metavar="REGION", help="limit regional checks to a region (*)")
    add("--check", **several, metavar="CHECK", choices=names, help="run only this check (*)")
    add("--output", **file, help="the workbook, or the overview of several accounts")
    add("--json", **file, help="write the report as JSON too; - is standard output")
    add("--csv", metavar="FOLDER", type=FOLDER, help="write every sheet as a CSV file too")
    add("--state", **file, help="remember findings here, to tell which are new or gone")
    add("--accept", **file, help="findings to accept: lines `ID [until YYYY-MM-DD] # reason`")
    add("--merge", nargs="+", metavar="NAME", type=FOLDER, default=[],
        help="audit nothing: make the overview of these reports and folders")  # fmt: skip
    add("--list", **file, help="audit nothing: write the numbers of the accounts, a line each")
    add("--max-key-age", metavar="DAYS", type=DAYS, default=str(MAX_KEY_AGE),
        help="an access key older than this is a finding (%(default)s)")  # fmt: skip
    add("--quiet", action="store_true", help="be silent but for what a person should read")
    add("--debug", action="store_true", help="log the calls to AWS on standard error")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(argv)
    if len(set(options.profile)) > 1 and (options.organization or options.account):
        parser.error("--organization and --account take one --profile at most")
    others = ("role", "region", "check", "csv", "accept", "max_key_age", "list")
    for name in others if options.merge else ():
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--merge audits nothing: --{name.replace('_', '-')} has no place there")
    return options


# === access ===========================================================================


class ReadingModels:
    """What botocore knows of AWS's services, read once for all accounts, because that is slow,
    and without what writes: our clients have no method that could change anything, but for
    those that are named, which the client that writes reports to S3 has."""

    def __init__(self, loader: Any, writes: Collection[str]) -> None:
        self.loader, self.writes = loader, writes
        self.load_service_model = functools.cache(self._load_service_model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def _load_service_model(
        self, service_name: str, type_name: str, api_version: str | None = None
    ) -> Any:
        model = self.loader.load_service_model(service_name, type_name, api_version)
        if type_name != "service-2":
            return model
        reads = {
            name: operation
            for name, operation in model["operations"].items()
            if name.startswith(READS) or name in self.writes
        }
        return model | {"operations": reads}


@functools.cache
def service_models(writes: tuple[str, ...]) -> Any:
    import botocore.session

    return ReadingModels(botocore.session.Session().get_component("data_loader"), writes)


def new_session(
    profile: str | None = None, writes: Collection[str] = (), **keys: str
) -> boto3.Session:
    import boto3
    import botocore.session

    core = botocore.session.Session(profile=profile)
    core.register_component("data_loader", service_models(tuple(writes)))
    return boto3.Session(botocore_session=core, **keys)


def advice(error: Exception, profile: str | None) -> str:
    """What to do about credentials that do not work."""
    code = getattr(error, "code", type(error).__name__)
    option = f" --profile {profile}" if profile else ""
    if code == "NoCredentialsError":
        return f"no AWS credentials found: run `aws configure{option}` or set AWS_PROFILE"
    if code.startswith("Login"):
        return f"the login session has expired: run `aws login{option}`"
    if code in ("SSOTokenLoadError", "TokenRetrievalError", "UnauthorizedSSOTokenError"):
        return f"the SSO session has expired: run `aws sso login{option}`"
    if code in EXPIRED:
        return "the credentials have expired: renew them and run again"
    if code in REFUSED:
        return "AWS does not accept these credentials: check the access key and the clock"
    reason = error.__cause__ or error
    return f"cannot reach the account: {' '.join(str(reason).split())}"


def connect(
    options: argparse.Namespace, profile: str | None, writes: Collection[str] = ()
) -> Account:
    """The account that we run in: it has answered who we are. It has the methods that read, and
    those that are named."""
    from botocore.exceptions import BotoCoreError, ProfileNotFound

    now = datetime.now(timezone.utc)
    try:
        session = new_session(profile, writes)
        aws = Account(session, now, options.region, int(options.max_key_age))
        identity = aws.ask("sts", "GetCallerIdentity")
        aws.number, aws.arn = identity["Account"], identity["Arn"]
    except ProfileNotFound as error:
        import botocore.session

        known = ", ".join(botocore.session.Session().available_profiles) or "none"
        raise CannotRun(f"{error} (profiles: {known})") from error
    except (BotoCoreError, Unanswered) as error:
        raise CannotRun(advice(error, profile)) from error
    return aws


def enter(caller: Account, profile: str | None, role: str, number: str) -> Account:
    """Another account, by its role; or the one that we run in, as we are."""
    session, arn = caller.session, caller.arn
    if number != caller.number:
        partition, who = arn.split(":")[1], re.split("[/:]", arn)[-1]
        name = re.sub(r"[^A-Za-z0-9_+=,.@-]", "-", f"security-check-{who}")[:64]
        wanted = f"arn:{partition}:iam::{number}:role/{role.lstrip('/')}"
        try:
            answer = caller.ask("sts", "AssumeRole", RoleArn=wanted, RoleSessionName=name)
        except Unanswered as error:
            raise replace(error, detail=wanted) from error
        keys, arn = answer["Credentials"], answer["AssumedRoleUser"]["Arn"]
        session = new_session(
            profile,
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys["SessionToken"],
            region_name=caller.region,
        )
    now = datetime.now(timezone.utc)
    return Account(session, now, caller.only, caller.max_key_age, number, arn)


def check_regions(aws: Account) -> None:
    try:
        unknown = sorted(set(aws.only) - set(enabled_regions(aws))) if aws.only else []
    except Unanswered:  # not ours to list: the checks will say what they cannot read
        return
    if unknown:
        valid = ", ".join(enabled_regions(aws))
        raise CannotRun(f"no such region in this account: {', '.join(unknown)} (valid: {valid})")


# === run ==============================================================================

OVERVIEW = "overview"  # in the place of an account's number


@dataclass
class Run:
    """A run of the program: what was asked for, when it began, and what it has used and written.

    `decisions` are those of --accept by the file that they are in, `used` are those that are
    about something that was found.
    """

    options: argparse.Namespace
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    decisions: dict[str, list[Acceptance]] = field(default_factory=dict)
    used: set[Acceptance] = field(default_factory=set)
    written: list[str] = field(default_factory=list)

    @property
    def several(self) -> bool:
        """Whether the run is over several accounts, and so ends in an overview."""
        options = self.options
        named = max(len(set(options.account)), len(set(options.profile)))
        return bool(options.organization or options.merge) or named > 1

    @functools.cached_property
    def writer(self) -> Account:
        """Who reads and writes files in S3: whoever started the run."""
        profiles = {*self.options.profile}
        profile = profiles.pop() if len(profiles) == 1 else None
        return connect(self.options, profile, writes=("PutObject",))

    def file(self, name: str, account: str = OVERVIEW) -> File:
        """The file of a name in which account, date and time are filled in."""
        day, hour = f"{self.started:%Y-%m-%d}", f"{self.started:%H%M}"
        whole = name.replace("{date}", day).replace("{time}", hour).replace("{account}", account)
        if match := S3_NAME.fullmatch(whole):
            return S3Object(self.writer, match[1], match[2] or "")
        return LocalFile(Path(whole), own_folder=whole != name)

    def deliver(self, data: bytes, name: str, account: str = OVERVIEW) -> None:
        """Write results under a name that is to be filled in."""
        file = self.file(name, account)
        deliver(data, file)
        self.written.append(file.place())

    def accepted(self, account: str) -> list[Acceptance]:
        """The decisions about an account."""
        if not self.options.accept:
            return []
        file = self.file(self.options.accept, account)
        if str(file) not in self.decisions:
            try:
                with reading(file):
                    text = file.read().decode()
            except UnicodeError as error:
                raise CannotRun(f"cannot read {file}: {error}") from error
            self.decisions[str(file)] = acceptances(text, str(file))
        return self.decisions[str(file)]


def inside(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def prepare(run: Run) -> None:
    """Everything that can be wrong before the first account is entered."""
    options = run.options
    for package in ("boto3", "xlwt"):
        if not importlib.util.find_spec(package):
            raise CannotRun(f"{package} is not installed: run `pip install boto3 xlwt`")
    names = [options.output or "security_check.xls", options.json]
    names += [options.state] if not options.merge else []  # which reads it only
    names += [inside(options.csv, "a.csv")] if options.csv else []
    for name in [options.list] if options.list else names:
        if name and name != "-":
            run.file(name).check()
    if options.state and "{account}" not in options.state:
        read_state(run.file(options.state))
    if "{account}" in (options.accept or ""):
        run.file(options.accept)  # in S3 it takes a session, which is made before the threads
    else:
        run.accepted("")


def history_of(run: Run, report: Report) -> list[Day]:
    """What is remembered of an account that was not audited."""
    return read_state(run.file(run.options.state, report.number)).history.get(report.number, [])


def without_ok(report: Report) -> Report:
    """What the overview needs of a report."""
    sheets = [
        replace(sheet, rows=[row for row in sheet.rows if row.status != OK])
        for sheet in report.sheets
    ]
    return replace(report, sheets=sheets)


def whole_json(documents: list[dict[str, Any]]) -> bytes:
    document = {"schema": REPORT_SCHEMA, "version": __version__, "accounts": documents}
    return json.dumps(document, indent=1).encode()


# === audits ===========================================================================

# An account, as a report that is still blank, and how to enter it if it is to be audited.
Member = tuple[Report, Callable[[], Account] | None]


def listed_accounts(caller: Account) -> dict[str, dict[str, Any]]:
    try:
        found = caller.fetch("organizations", "ListAccounts", "Accounts", page_size=20)
        return {account["Id"]: account for account in found}
    except Unanswered as error:
        where = "ask from the management account or a delegated administrator"
        raise CannotRun(f"cannot list the accounts: {error}{needed(error)}; {where}") from error


def members_by_profile(options: argparse.Namespace, blank: Report) -> Iterator[Member]:
    """The accounts of several profiles, each once."""
    seen: dict[str, str] = {}
    for profile in dict.fromkeys(options.profile):
        way = None
        report = replace(blank, name=profile, profile=profile)
        try:
            aws = connect(options, profile)
        except CannotRun as why:
            complain(f"{profile}: {why}")
            report.error = as_gap(why)
        else:
            report.number = aws.number
            way = functools.partial(enter, aws, profile, "", aws.number)
        if report.number in seen:
            complain(f"{profile}: the same account as {seen[report.number]}: audited once")
            continue
        seen |= {report.number: profile} if report.number else {}
        yield report, way


def members_of(
    caller: Account, options: argparse.Namespace, profile: str | None, blank: Report
) -> Iterator[Member]:
    """The accounts of the organization, or those of them that are asked for, each once."""
    listed = {number: {"Id": number} for number in options.account or [caller.number]}
    if options.organization:
        listed = listed_accounts(caller)
    for number in dict.fromkeys(options.account or listed):
        about = listed.get(number, {})
        state = about.get("State") or about.get("Status") or ACTIVE  # AWS retired Status in 2026
        report = replace(blank, number=number, name=about.get("Name", ""), state=state)
        if not about:
            report.error = Unanswered("NotListed", "organizations", "ListAccounts")
        if number == caller.number:
            report.profile = profile or ""
        way = functools.partial(enter, caller, profile, options.role, number)
        yield report, way if state == ACTIVE and not report.error else None


FINISHED: list[str] = []  # accounts whose files are written, for who interrupts the run


def matched(decisions: list[Acceptance], number: str, sheets: Iterable[Sheet]) -> set[Acceptance]:
    """The decisions that are about something on the sheets."""
    ids = [sheet.id(row) for sheet in sheets for row in sheet.rows]
    return {one for one in decisions if any(one.is_about(number, id) for id in ids)}


def write(run: Run, report: Report, now: Known) -> None:
    """Write the workbook, the CSV files and the state of one account."""
    options, number = run.options, report.number
    name, output = f"security_check_{number}_{report.started:%Y-%m-%d_%H%M}.xls", options.output
    if output and run.several and "{account}" not in output:
        name = output.removesuffix(Path(output).name) + name  # beside the overview
    elif output:
        name = output
    report.path = run.file(name, number).place()
    run.deliver(workbook(report), name, number)
    FINISHED.append(number)
    for sheet in report.sheets if options.csv else ():
        csv_name = inside(options.csv, f"{number}-{sheet.check.name}.csv")
        run.deliver(as_csv(sheet, report), csv_name, number)
    if options.state:
        write_state(run.file(options.state, number), number, now, report.history)


def audit(run: Run, aws: Account, report: Report, progress: Progress) -> None:
    """Audit one account, fill in its report, and write what is to be written of it."""
    options, began = run.options, time.monotonic()
    check_regions(aws)
    decisions = run.accepted(aws.number)
    state = read_state(run.file(options.state, aws.number)) if options.state else None
    known = state.accounts.get(aws.number, {}) if state else None
    wanted = [what for what in CHECKS if what.name in (options.check or what.name)]
    look_ahead(aws, wanted)
    sheets = [run_check(what, aws, progress) for what in wanted]
    today = f"{report.started:%Y-%m-%d}"
    sheets = [settled(sheet, aws.number, decisions, known, today) for sheet in sheets]
    run.used |= matched(decisions, aws.number, sheets)
    now, gone = compared(sheets, known or {}, aws.only)
    report.gone = gone if options.state else None
    report.judged = {name: judge(sheet, name) for sheet in sheets for name in sheet.check.controls}
    report.sheets = [completed(sheet, aws.region, report.profile) for sheet in sheets]
    report.number, report.arn = aws.number, aws.arn
    report.home, report.started = aws.region, aws.now.replace(microsecond=0)
    report.aliases = answer_or_gap(account_aliases, aws)
    report.regions = answer_or_gap(regions, aws)
    report.seconds = round(time.monotonic() - began, 1)
    if state:
        report.history = state.history.get(aws.number, [])
        if len(wanted) == len(CHECKS) and not aws.only:  # else it is no line like the others
            report.history = with_today(report.history, report, today)
    write(run, report, now)


def cannot_enter(why: Unanswered) -> str:
    return f"cannot enter the account: {why}{needed(why)}"


def audit_member(run: Run, member: Member, progress: Progress) -> tuple[Report, dict[str, Any]]:
    """Audit one account: the report, and the same as JSON. A failure costs this account only,
    and says so, if there are others or the JSON can tell of it. Then of each only that is kept
    which the overview needs."""
    (report, way), options = member, run.options
    try:
        if way:
            with contextlib.closing(way()) as aws:
                audit(run, aws, report, progress)
    except Exception as error:
        if not run.several:
            if not isinstance(error, Unanswered):
                raise
            if not options.json:
                raise CannotRun(cannot_enter(error)) from error
        blank = Report(report.number, report.started, profile=report.profile)
        report = replace(blank, name=report.name, error=as_gap(error))
    if report.error and options.state:
        report.history = history_of(run, report)
    document = as_json(report) if options.json else {}
    if "{account}" in (options.json or ""):
        run.deliver(whole_json([document]), options.json, report.number or report.name)
        document = {}  # it is written, and need not be kept
    return (without_ok(report) if run.several else report), document


def audited(
    run: Run, members: list[Member], progress: Progress
) -> tuple[list[Report], list[dict[str, Any]]]:
    """The reports of the accounts, which are audited side by side, and the same as JSON."""
    inner = (lambda _: None) if run.several else progress
    with ThreadPoolExecutor(ACCOUNTS_AT_ONCE) as pool:
        jobs = [pool.submit(audit_member, run, one, inner) for one in members]
        findings = 0
        for done, job in enumerate(as_completed(jobs) if run.several else (), 1):
            findings += len(job.result()[0].rows(FINDING))
            progress(f"{done:,} of {len(jobs):,} accounts, {counted(findings, 'finding')}")
    progress("")
    reports, documents = zip(*(job.result() for job in jobs), strict=True)
    return [*reports], [*documents]


# === merging ==========================================================================


def reports_in(file: File, whole: bool) -> list[Report]:
    """The reports that are in a file, or why there are none; if not whole, only what the overview
    shows of them."""
    try:
        with reading(file):
            document = json.loads(file.read())
        if (version := document["schema"]) != REPORT_SCHEMA:
            raise CannotRun(f"{file} is of version {version}, this script knows {REPORT_SCHEMA}")
        reports = (report_from(one) for one in document["accounts"])
        return [report if whole else without_ok(report) for report in reports]
    except (*NOT_A_REPORT, RecursionError) as error:
        raise CannotRun(f"{file} is damaged, or no report of this script") from error


def scope(report: Report) -> set[tuple[str, bool]]:
    """Which checks were run, and which of them were run on everything."""
    names = {(sheet.check.name, False) for sheet in report.sheets}
    return names | {(sheet.check.name, True) for sheet in report.sheets if sheet.whole}


def left_out(report: Report, why: str) -> Report:
    """An account of which something is not in the overview, and why."""
    complain(f"{report.number} {why}".strip())
    error = Unanswered("NotMerged", detail=why)
    return Report(report.number, report.started, name=report.name, error=error)


def fitting(report: Report, latest: datetime, asked: Collection[tuple[str, bool]]) -> Report:
    """The report, if it is of the same run as the latest and was asked about as much as others.
    An old one must not stand for an audit that failed, nor one with less for a whole one."""
    if latest - report.started > RUN_LASTS:
        return left_out(report, f"was audited on {report.started:%Y-%m-%d}, before this run")
    if report.state == ACTIVE and not report.error and scope(report) != asked:
        return left_out(report, "was asked about fewer checks or regions than others")
    return report


def gathered(run: Run) -> tuple[list[Report], list[Report]]:
    """The reports that there are, one of each account, and gaps for what cannot be merged."""
    files: list[File] = []
    for place in map(run.file, run.options.merge):
        with reading(place):
            files += place.documents()
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [(file, pool.submit(reports_in, file, bool(run.options.json))) for file in files]
    found, gaps = dict[str, tuple[File, Report]](), list[Report]()
    for file, job in jobs:
        try:
            reports = job.result()
        except CannotRun as why:
            gaps.append(left_out(Report("", run.started, name=Path(file.place()).name), str(why)))
            continue
        for report in reports:
            other, known = found.setdefault(key := report.number or report.name, (file, report))
            if known is not report:
                twice = f"is in {other} and in {file}: the later one counts"
                gaps.append(left_out(report, twice))
                found[key] = file, max(known, report, key=lambda one: one.started)
    return [report for _, report in found.values()], gaps


def merged(run: Run, expected: list[Report]) -> list[Report]:
    """The reports of a run, read back. What cannot be merged is a gap, as is an account that is
    expected and of which there is no report."""
    found, gaps = gathered(run)
    latest = max((one.started for one in found), default=run.started)
    asked = set().union(*map(scope, found))
    reports = {one.number or one.name: fitting(one, latest, asked) for one in found}
    for blank in expected:
        one = reports.setdefault(blank.number, blank)
        one.name = blank.name or one.name
        if one is blank and one.state == ACTIVE and not one.error:
            one.error = Unanswered("NoReport", detail="of this run")
        if one is blank and run.options.state:
            one.history = history_of(run, one)
    return [*reports.values(), *gaps]


def as_one(results: Results, reports: list[Report]) -> Results:
    """The results of a run that reports were written in, wherever that was."""
    seen = [one for one in reports if one.arn or one.sheets]
    if not reports:
        raise CannotRun("there is no report to merge")
    began = min((one.started for one in seen), default=results.started)
    ended = max((one.started + timedelta(seconds=one.seconds) for one in seen), default=began)
    return replace(
        results,
        started=began,
        seconds=(ended - began).total_seconds(),
        with_state=any(one.gone is not None for one in reports),
        arn=results.arn or in_words(sorted(one.arn for one in seen)),
    )


# === main =============================================================================


class Outcome(NamedTuple):
    """What came out of a run. It is `calm` if there is nothing that a person should read."""

    exit_code: int
    headline: str
    calm: bool
    files: list[str]


def write_list(run: Run, numbers: list[str]) -> Outcome:
    """Write which accounts there are to audit, for who spreads the work."""
    text = "\n".join(numbers)
    if run.options.list == "-":
        say(text)
    else:
        run.deliver(f"{text}\n".encode(), run.options.list)
    return Outcome(0, counted(len(numbers), "account"), True, run.written)


def whom(run: Run) -> tuple[Results, list[Member]]:
    """Which accounts are to be audited, or are expected, and what they belong to."""
    options, blank = run.options, Report("", run.started.replace(microsecond=0))
    results = Results([], run.started, run.several, bool(options.state))
    if options.merge and not options.organization:
        results.of = "AWS accounts"
        return results, [(replace(blank, number=one), None) for one in options.account]
    if len(set(options.profile)) > 1:
        results.of, results.arn = "AWS profiles", ", ".join(options.profile)
        return results, [*members_by_profile(options, blank)]
    profile = next(iter(options.profile), None)
    caller = connect(options, profile)
    of = f"AWS organization of {caller.number}" if options.organization else "AWS accounts"
    results.of, results.arn = of, caller.arn
    return results, [*members_of(caller, options, profile, blank)]


def conclude(run: Run, results: Results, documents: list[dict[str, Any]]) -> Outcome:
    """Tell what came out, and how."""
    options, reports = run.options, results.reports
    for report in reports:
        where = f"{report.number}: " if results.several else ""
        if report.has_expired():
            complain(f"{where}the credentials expired during the audit: the rest was {NOT_CHECKED}")
        if report.error and not results.several:
            complain(cannot_enter(report.error))
    calm = all(report.is_calm() for report in reports)
    shown = results.several or not reports[0].error
    if options.json != "-" and shown and not (options.quiet and calm):
        terminal = bool(sys.stdout and sys.stdout.isatty())
        say(terminal_text(results, colour=terminal and "NO_COLOR" not in os.environ))
    unlooked = options.check or options.region or options.account or options.quiet
    if not unlooked and not any(one.error for one in reports):
        for decision in (one for found in run.decisions.values() for one in found):
            if decision not in run.used:
                complain(f"accepted, but nothing is like it: {decision.pattern}")
    if options.json == "-":
        say(whole_json(documents).decode())
    elif options.json and (options.merge or "{account}" not in options.json):
        run.deliver(whole_json(documents), options.json)
    code = max((report.exit_code() for report in reports), default=0)
    only = f"AWS account {reports[0].number}"
    whose = f"{results.of}: {accounts_words(reports)}" if results.several else only
    return Outcome(code, f"{whose}: {headline(results)}", calm, run.written)


def perform(argv: Sequence[str] | None) -> Outcome:
    """A run from its arguments to its end. The files of each account are written when it is
    done, and the overview of several at the end. CannotRun says why there is no report."""
    began, options = time.monotonic(), arguments(argv)
    FINISHED.clear()
    gc.set_threshold(100_000)  # botocore's models are large, and looked through in vain
    log_calls(options.debug)
    run = Run(options)
    prepare(run)
    results, members = whom(run)
    if options.list:
        return write_list(run, [report.number for report, way in members if way])
    if options.merge:
        reports = merged(run, [report for report, _ in members])
        documents = [as_json(report) for report in reports if options.json]
        reports = [*map(without_ok, reports)]
        results = as_one(results, reports)
    else:
        progress = functools.partial(show_progress, began, not options.quiet)
        reports, documents = audited(run, members, progress)
        results.seconds = time.monotonic() - began
    results.reports = sorted(reports, key=Report.badness)
    results.path = reports[0].path
    if results.several:
        name = options.output or f"security_check_overview_{run.started:%Y-%m-%d_%H%M}.xls"
        results.path = run.file(name).place()  # which the overview's links begin at
        run.deliver(book_of(results), name)
    return conclude(run, results, documents)


def main(argv: Sequence[str] | None = None) -> int:
    """Audit accounts; the arguments are the command line's, the result is the exit code."""
    try:
        return perform(argv).exit_code
    except CannotRun as why:
        complain(str(why))
    return 2


def lambda_handler(event: dict[str, Any], context: object) -> dict[str, Any]:  # noqa: ARG001
    """What AWS Lambda calls: `event["arguments"]` is the command line. What comes back is exit
    code, headline, whether all is calm, and where files are in S3. What no report can be written
    for is raised, so that who called may try again or go on without."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the only place where a function may write
        try:
            outcome = perform([*event["arguments"]])
        except SystemExit as end:
            raise CannotRun("bad arguments: the log tells which") from end
        finally:
            os.chdir(before)
    kept = [name for name in outcome.files if S3_NAME.fullmatch(name)]
    return outcome._replace(files=kept)._asdict()


def leave(code: int) -> None:
    """End the process without its threads, which may still wait for AWS, and without taking
    everything down piece by piece, which takes as long as the calls of a small audit."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def stop(number: int, _: object) -> None:
    done = f"{counted(len(FINISHED), 'account')} done, no overview was written"
    what = done if FINISHED else "no workbook was written"
    complain(f"interrupted by {signal.Signals(number).name}: {what}")
    leave(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    job = ThreadPoolExecutor(1).submit(main)
    while not job.done():  # a signal may go unheard in a wait without an end, on Windows always
        wait([job], timeout=0.2)
    leave(job.result())
