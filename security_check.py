#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["boto3>=1.44", "xlwt>=1.3"]
# ///
"""Audit AWS accounts: six read-only checks, one workbook. What AWS refused to show is NOT CHECKED.

The file has seven sections, to be read from top to bottom. Each uses only the sections above
it, and of these only what they offer (tests/test_structure.py holds the file to that):

    model         the data: Check -> Row -> CheckResult -> Report -> Overview
                  offers: CRITICAL, HIGH, MEDIUM, LOW, SEVERITIES, OK, FINDING, NOT_CHECKED,
                    ACCEPTED, ROW_ORDER, NEW, WORSE, BETTER, PASSED, FAILED, CONTROL_STATUSES,
                    ACTIVE, LEFT_ORGANIZATION, ROOT, NOTHING_TARGET, EXPIRED_TARGET,
                    NOT_CHECKED_END, MAX_KEY_AGE, RULES_DATE, MAX_CELL_TEXT, EXPIRED_CODES,
                    GONE_CODES, DENIED_BY, Cell, CannotRun, AwsError, AwsCallFailed, Acceptance,
                    Control, ControlFinding, ControlStatus, Remediation, Message, Row, TargetKind,
                    Check, CHECKS, check, check_name_of, CheckResult, KnownFinding, HistoryEntry,
                    CoveredFinding, Coverage, AccountState, Question, Report, AccountJob, Overview,
                    once, for_each, counted, in_words, yes_no, not_checked_row, utc_now,
                    start_of_day
    checks        the targets of checks, then six checks, each below its rules
                  offers: answer_or_error, enabled_regions, regions, account_aliases
    aws           the only code that calls AWS
                  offers: LIMITS_USED_UP, READ_POLICY, CALL_LOG, SIGN_IN, sign_in, new_session,
                    describe_failure, Account, Account.ask, Account.fetch, Account.close,
                    Account.number, Account.partition, Account.session, Account.now,
                    Account.only_regions, Account.excluded_regions, Account.max_key_age,
                    Account.fatal_error, Account.cache
    audit         runs the checks on one account, compares with the state, applies acceptances
                  offers: AuditInput, audit, print_traceback, to_aws_error, rank_of, StateChange,
                    apply_change, merge_history, merge_statuses, drop_ok_rows,
                    drop_repeated_rows
    storage       files here and in S3; the accept file, the state and the report as JSON
                  offers: WRITTEN, WRITING, ACCOUNT_FIELD, LocalFile, S3_NAME, S3Object, File,
                    FILE_ERRORS, error_text, read_errors_as_cannot_run, write_or_save_copy,
                    read_accept_file, encode, to_json, reports_from_json, read_state_file,
                    account_state, write_state_file
    output        reports as people read them: sentences, terminal, workbook, CSV; OCSF
                  offers: needed_permission, headline, describe_accounts, terminal_text,
                    printable, build_workbook, csv_files, to_ocsf
    command line  arguments, credentials, the accounts of a run, merging, main
                  offers: main, lambda_handler

Where to look:

    when an open port is a finding     checks: exposure_of
    how severe an open port is         checks: open_rule_row, port_severity
    when a key is too old              checks: key_rows
    when a user lacks MFA              checks: user_mfa_row, root_mfa_row, has_mfa
    when a region is not recorded      checks: region_row, Trail.problems
    what an event selector records     checks: selector_recordings, advanced_selector_events
    when a grant or policy is public   checks: failed_bucket_controls, public_grant_rows, policy_row
    a remediation command              checks: revoke_commands, deactivate_key, complete_trail,
                                       remove_grant, restrict_bucket
    a denied call becomes a row        audit: check_target, failed_target_row
    a denied call that is an answer    checks: answer_or_error
    how an error of AWS is described   aws: describe_failure
    tries and time-outs of a call      aws: client_config, Account._on_attempt
    how fast AWS is asked              aws: Pace
    when credentials have expired      model: EXPIRED_CODES
    whose credentials are used         command line: connect, role_session; aws: sign_in
    what an assumed role may do        aws: READ_POLICY; command line: role_session
    what our clients can do            aws: READ_PREFIXES, read_only_loader
    what --debug shows, and hides      aws: log_attempt; command line: log_calls
    the ID of a row                    model: Row.id, Check.id
    when a finding is NEW or WORSE     audit: changed_row, moved_row, is_worse
    when a finding is resolved         audit: diff_with_state, is_undetermined
    when an acceptance counts          model: Acceptance.matches; audit: apply_acceptances,
                                       why_ended
    when a control is FAILED           audit: evaluate_control
    whether a file is here or in S3    command line: Run.file; storage: LocalFile, S3Object
    reports and state as JSON          storage: encode, reports_from_json, write_state_file
    when the state is written          command line: report_outcome, Run.write_states
    which files --merge reads          command line: files_to_merge
    which reports are merged           command line: read_reports, reject_stale
    the width of a column              output: SheetWriter.write_cell, COLUMNS
    the look of a cell                 output: STYLES, check_table_row
    which findings are the worst       output: ranked, seriousness_key
    what the terminal shows            output: terminal_text
    a row as OCSF                      output: ocsf_row_event, ocsf_event
    what options mean and exclude      command line: parse_arguments, NOT_TOGETHER
    when --quiet prints                command line: report_outcome; model: Report.needs_attention
    exit codes 0, 1 and 3              model: Report.exit_code, Overview.exit_code
    exit code 2                        command line: main, report_outcome
    Ctrl-C, SIGTERM and SIGHUP         command line: on_signal
    what AWS Lambda calls              command line: lambda_handler

A seventh check is one generator (account, target) -> rows below `@check`, in the section
checks: the fields of `Check` say what to declare, `check_ec2_classic` is the shortest example.
A new kind of target is a `TargetKind`; a new control of Security Hub is declared by its check;
a new IAM action is added to READ_ACTIONS in the section aws, to which assumed roles are held down.
Severities are those that AWS Security Hub publishes for the control whose number stands at the
rule; where there is no number, the rule and its severity are ours.
"""

from __future__ import annotations

import sys

# An older Python parses the whole file before it comes to this test of its version, so the file
# keeps to the grammar of Python 3.8.
if sys.version_info < (3, 10):  # noqa: UP036
    if sys.stderr:
        sys.stderr.write("security_check.py: run it with Python 3.10 or later, e.g. python3.12\n")
    sys.exit(2)

import argparse
import contextlib
import csv
import errno
import functools
import gc
import glob
import importlib
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
import stat
import string
import struct
import tempfile
import textwrap
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, is_dataclass, replace
from datetime import datetime, timedelta, timezone
from fnmatch import translate
from ipaddress import collapse_addresses, ip_network
from itertools import accumulate, filterfalse, pairwise
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    NamedTuple,
    NoReturn,
    ParamSpec,
    TextIO,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)
from unicodedata import combining, east_asian_width
from urllib.parse import quote

if TYPE_CHECKING:  # boto3 and xlwt are imported only when needed: --help answers at once
    import boto3
    import xlwt

__version__ = "2.0"

# === model ============================================================================
#
#     Check --(account, target)--> Row --> CheckResult --> Report --> Overview

CRITICAL, HIGH, MEDIUM, LOW = SEVERITIES = ("Critical", "High", "Medium", "Low")
OK, FINDING, NOT_CHECKED, ACCEPTED = "OK", "FINDING", "NOT CHECKED", "ACCEPTED"
ROW_ORDER = (*SEVERITIES, NOT_CHECKED, ACCEPTED, OK)  # the order of rows on a sheet, by these words
NEW, WORSE, BETTER = "NEW", "WORSE", "BETTER"  # how a finding changed since the last run
PASSED, FAILED = "PASSED", "FAILED"
CONTROL_STATUSES = (FAILED, NOT_CHECKED, ACCEPTED, PASSED)  # statuses of a control, worst first
ACTIVE = "ACTIVE"  # AWS's word for an account of an organization that can be audited
LEFT_ORGANIZATION = "LEFT"  # our word for an account that has left the organization
ROOT = "<root_account>"  # root's name in the credential report; no IAM user name can contain "<"
# Targets of rows that stand for others: nothing to show, and all that lost credentials cost
NOTHING_TARGET, EXPIRED_TARGET = "<nothing>", "<expired>"
NOT_CHECKED_END = "not-checked"  # the end of the ID of every row that is NOT CHECKED

MAX_KEY_AGE = 90  # days: the greatest age of an access key that Security Hub IAM.3 allows
RULES_DATE = "2026-11-25"  # when rules and controls were last compared with AWS's documentation
MAX_CELL_TEXT = 32_767  # the most characters that a cell of the .xls format can hold
PREFETCH_THREADS = 8  # threads of for_each: few, as IAM throttles the account as a whole

EXPIRED_CODES = {
    *("ExpiredToken", "ExpiredTokenException", "LoginRefreshRequired", "LoginTokenLoadError"),
    *("SSOTokenLoadError", "TokenRetrievalError", "UnauthorizedSSOTokenError"),
}
GONE_CODES = {"NoSuchEntity", "NoSuchBucket"}  # error codes for a resource deleted after listing

# The IAM actions of S3 whose names differ from those of the calls that they allow.
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
IAM_ACTION_NAMES = {
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "s3control:GetPublicAccessBlock": "s3:GetAccountPublicAccessBlock",
}

DENIED_BY = "(denied by: "  # begins an AwsError.detail that names the policy that denied

Cell = str | int | bool | datetime | None
Fact = str | int | bool | None  # a value for programs, in the JSON report and in OCSF

# --- values ---------------------------------------------------------------------------


class CannotRun(Exception):
    """The reason why there is no report, as one line for the administrator; exit code 2."""


@dataclass(frozen=True)
class AwsError:
    """The reason why a call to AWS failed, as data."""

    code: str  # error code of AWS (AccessDenied), of botocore (EndpointConnectionError), or ours
    service: str = ""
    operation: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {' '.join(filter(None, (self.service, self.operation, self.detail)))}"

    @property
    def missing_permission(self) -> str:
        """The IAM action the caller may lack; blank if not denied, or if AWS names the policy."""
        action = f"{self.service}:{self.operation}"
        denied = "Denied" in self.code or "Unauthorized" in self.code
        elsewhere = DENIED_BY in self.detail  # a policy denies the call: an Allow would not help
        return IAM_ACTION_NAMES.get(action, action) if denied and not elsewhere else ""


class AwsCallFailed(Exception):
    """A call to AWS failed. Reports keep the `error` only: a traceback holds on to the account."""

    def __init__(self, error: AwsError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Acceptance:
    """A line of the accept file: somebody decided to live with the findings that it matches."""

    pattern: str  # a glob over IDs; it is for one account if it begins with an account number
    until: str  # the last day on which the acceptance is valid; blank if it has no end
    reason: str

    @property
    def line(self) -> str:
        """The line as text, its key in the state: a changed line is a new acceptance."""
        return f"{self.pattern} until {self.until} # {self.reason}"

    def matches(self, account: str, id: str, gap: bool) -> bool:
        """Whether the pattern fits ID or ACCOUNT/ID; for a `gap` it must end in not-checked.

        A pattern that ends in not-checked fits nothing else, unless it has no wildcards. Expired
        credentials are never accepted.
        """
        ends_so = self.pattern.endswith(NOT_CHECKED_END)
        if ends_so != gap and (gap or not self.exactness()[0]):
            return False
        names = (id, f"{account}/{id}")
        return EXPIRED_TARGET not in id and any(map(glob_regex(self.pattern).fullmatch, names))

    def exactness(self) -> tuple[bool, int]:
        """The sort key of patterns: those without wildcards come last; of equals, the longest."""
        return not set(self.pattern) & set("*?["), len(self.pattern)


@functools.cache
def glob_regex(pattern: str) -> re.Pattern[str]:
    """The compiled regular expression of a glob. All are cached: fnmatch caches only some."""
    return re.compile(translate(pattern))


class Control(NamedTuple):
    """A control of AWS Security Hub, and its numbers in other standards; blank if none."""

    severity: str
    requirement: str
    cis_5: str = ""  # the number in CIS AWS Foundations Benchmark 5.0.0
    cis_3: str = ""  # the number in CIS AWS Foundations Benchmark 3.0.0
    pci: str = ""  # the numbers in PCI DSS 4.0.1
    scope: str = ""  # the only target that decides the control; blank if each resource does


class ControlFinding(NamedTuple):
    """A resource that FAILED a control, or for which the control is NOT CHECKED."""

    control: str
    resource: str
    status: str = FAILED


class ControlStatus(NamedTuple):
    """The status of a control in one account, or in several together."""

    status: str  # status of the control: a word of CONTROL_STATUSES
    evaluated: int = 0  # number of resources that the control looked at
    failed: int = 0  # number of resources that fail the control, accepted ones too


class Remediation(NamedTuple):
    """The way to fix a finding: a command, or a task by hand."""

    command: str = ""  # AWS CLI commands in one line, complete and quoted for a POSIX shell
    manual: str = ""  # what to do by hand if no command can fix the finding


class Message(NamedTuple):
    """A sentence about a resource, without its name.

    Messages that differ only in `item` are listed together: `lets the whole Internet reach `,
    `SSH (22)` and `RDP (3389)`, `; nothing uses it`.
    """

    before: str
    item: str = ""
    after: str = ""


# --- a check and its result -----------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a sheet: the result of a check for a target, or for one item in it."""

    target: str  # the region, user, bucket or <account> that was checked
    item: str  # the thing in the target, such as a key ID; blank if the row is about the target
    cells: dict[str, Cell]  # values of the check's own columns, by column header
    message: Message = field(default=Message(""))
    severity: str = ""  # the severity of a finding; blank if the row is no finding
    error: AwsError | None = None  # the reason why the row is NOT CHECKED
    remediation: Remediation = field(default=Remediation(), compare=False)
    control_findings: tuple[ControlFinding, ...] = ()  # the most severe control is first
    extent: frozenset[str] = frozenset()  # the extent of a finding: open CIDRs, flaws, ...
    # ID of the resource: a new finding of it replaces a vanished one; blank: the target
    resource: str = ""
    fully_read: bool = True  # False if an error leaves the severity or extent uncertain

    # these fields of a row serve sorted lists and other programs
    kind: str = field(default="", compare=False)  # the finding in general: `Root has access keys`
    priority: int = field(default=0, compare=False)  # rank within a severity: the highest is first
    arn: str = field(default="", compare=False)  # resource's ARN; Check.with_arn fills it if blank
    facts: dict[str, Fact] = field(default_factory=dict, compare=False)

    # the next five fields are filled in by apply_state and apply_acceptances
    acceptance: Acceptance | None = None
    acceptance_ended: str = ""  # why the acceptance does not count; blank if it counts
    first_seen: str = ""  # first day with this finding, such as 2030-12-31; blank without --state
    change: str = ""  # NEW today, or WORSE or BETTER than in the last run; else blank
    was: str = ""  # the sentence of the last run, if the finding is WORSE or BETTER

    @property
    def id(self) -> str:
        """The ID in its check, `TARGET[/ITEM][/not-checked]`; Check.id adds the check's name.

        The ID is the same in every run: severity and extent are not in it.
        """
        end = NOT_CHECKED_END if self.error else ""
        return "/".join(filter(None, (self.target, self.item, end)))

    @property
    def status(self) -> str:
        """The status: ACCEPTED while an acceptance holds, else NOT CHECKED, FINDING or OK."""
        if self.acceptance and not self.acceptance_ended:
            return ACCEPTED
        return NOT_CHECKED if self.error else FINDING if self.severity else OK

    @property
    def controls(self) -> list[str]:
        """The controls that the row fails, without repetitions."""
        failed = (one.control for one in self.control_findings if one.status == FAILED)
        return [*dict.fromkeys(failed)]

    @property
    def control(self) -> str:
        """The controls that the row fails, as text such as `EC2.19, EC2.13`."""
        return ", ".join(self.controls)

    @property
    def level(self) -> str:
        """The severity of a finding, or the status of any other row: a word of ROW_ORDER."""
        return self.severity if self.status == FINDING else self.status

    @property
    def result(self) -> str:
        """The text of the column Result: the message, or the error if there is one."""
        text = str(self.error) if self.error else "".join(self.message)
        return text[:1].upper() + text[1:] if self.severity else text

    @property
    def new(self) -> bool:
        """Whether the finding was first seen today; False for all on the first day of its check."""
        return self.change == NEW


# A check yields rows; it may return the number of resources evaluated, in total or by control.
Rows = Generator[Row, None, Counter[str] | int | None]


class TargetKind(NamedTuple):
    """A kind of thing that checks are run over: regions, users, buckets."""

    noun: str  # plural noun for the targets in messages, such as `users`
    names: Callable[[Account], Iterable[str]]
    regional: bool = False  # True if --region limits these targets: they are regions, or <account>
    arn: Callable[[Account, str], str] | None = None  # makes a target's ARN, if Check.arn cannot


@dataclass(frozen=True, eq=False)
class Check:
    """A check and the sheet that it fills. The first block is what every check must declare."""

    title: str  # the title of the sheet; in lower case, with hyphens, the name for --check
    targets: TargetKind
    columns: tuple[str, ...]  # headers of the check's own columns; the first names the target
    description: str  # what the sheet shows, and what to do about a finding
    docs: str  # the URL of AWS's documentation on the subject of the check
    empty_message: str  # text if no row is OK or a finding; may use {targets} and {evaluated}
    rows: Callable[[Account, str], Rows]

    coverage: str = ""  # what the check counts, and what it does not look at
    arn: str = ""  # pattern of a resource's ARN; may use {partition}, {account}, {any column}
    name_columns: tuple[str, ...] = ()  # columns that name the resource, the best first
    row_noun: str = "row"
    controls: dict[str, Control] = field(default_factory=dict)  # the check's controls, by number
    console_links: dict[str, str] = field(default_factory=dict)  # URL templates by column header
    prefetch: tuple[Callable[[Account], Any], ...] = ()  # calls to start while earlier checks run
    threads: int = 32  # number of targets checked at once; as many as CONNECTIONS
    uses_key_age: bool = False  # whether --max-key-age decides what is a finding

    @property
    def name(self) -> str:
        """The check's name on the command line and in IDs, such as `security-groups`."""
        return self.title.lower().replace(" ", "-")

    def id(self, row: Row) -> str:
        """The ID of a row among all checks, such as `security-groups/eu-west-1/sg-1/TCP/22`."""
        return f"{self.name}/{row.id}"

    def with_arn(self, row: Row, aws: Account) -> Row:
        """The row with its resource's ARN; blank if that is unknown, or the target NOT CHECKED."""
        if row.arn or (row.error and not row.item):
            return row
        if self.targets.arn:
            return replace(row, arn=self.targets.arn(aws, row.target))
        names = {name: str(row.cells.get(name) or "") for name in self.columns}
        names |= {"account": aws.number, "partition": aws.partition}
        known = all(names[name] for name in template_fields(self.arn))
        return replace(row, arn=self.arn.format_map(names) if known else "")

    def resource_names(self, row: Row) -> list[str]:
        """The names of the row's resource, the best one first; blank cells are left out."""
        cells = (row.cells.get(column) for column in self.name_columns or self.columns[:1])
        return ["root" if cell == ROOT else str(cell) for cell in cells if cell]


CHECKS: list[Check] = []
OTHER_SHEETS = ("summary", "accounts", "controls", "resolved")
COMMON_COLUMNS = {
    *("Account", "Account name", "Result", "Severity", "Status", "Control", "First seen"),
    *("Remediation", "ID"),
}
EMPTY_FIELDS = {"targets", "evaluated"}  # names that may stand in braces in Check.empty_message
ARN_FIELDS = {"partition", "account"}  # names that may stand in braces in Check.arn, beside columns
CheckFunction = TypeVar("CheckFunction", bound=Callable[..., Any])


def check_name_of(id: str) -> str:
    """The name of the check with which an ID of `Check.id` begins."""
    return id.partition("/")[0]


def check(title: str, **fields: Any) -> Callable[[CheckFunction], CheckFunction]:
    """Declares the decorated generator (account, target) -> rows as a check.

    The fields are those of Check. Checks are run, and sheets are ordered, as they are declared.
    Raises ValueError for a declaration that would fail later.
    """

    def register(rows: CheckFunction) -> CheckFunction:
        """The function itself, after its check was added to CHECKS."""
        definition = Check(title, rows=rows, **fields)
        if problem := declaration_problem(definition):
            raise ValueError(f"@check({title!r}): {problem}")
        CHECKS.append(definition)
        return rows

    return register


def declaration_problem(definition: Check) -> str:
    """The first flaw in the declaration of a check; blank if there is none."""
    own, links = set(definition.columns), definition.console_links
    in_arn = {*template_fields(definition.arn)} - ARN_FIELDS
    used = {*definition.name_columns, *links, *template_fields("".join(links.values())), *in_arn}
    in_message = {*template_fields(definition.empty_message)}
    known = {name for other in CHECKS for name in other.controls}
    titles = [*OTHER_SHEETS, *(other.title.lower() for other in CHECKS)]
    valid_title = re.fullmatch(r"[^/\\?*\[\]:']{1,31}", definition.title)
    severities = {control.severity for control in definition.controls.values()}
    problems = {
        "the title of a sheet has 1 to 31 characters, none of / \\ ? * [ ] : '": not valid_title,
        "another sheet has this title": definition.title.lower() in titles,
        "it needs at least one column": not definition.columns,
        f"every sheet has a column {in_words(sorted(own & COMMON_COLUMNS))}": own & COMMON_COLUMNS,
        f"no column {in_words(sorted(used - own))}": used - own,
        "empty_message may use {targets} and {evaluated} only": in_message - EMPTY_FIELDS,
        "another check decides one of the controls": known & definition.controls.keys(),
        "the severity of a control is one of SEVERITIES": severities - {*SEVERITIES},
    }
    return next((sentence for sentence, wrong in problems.items() if wrong), "")


def template_fields(template: str) -> list[str]:
    """The names in the braces of a template: `a` and `b` of `{a}/{b:,}`."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


@dataclass(frozen=True)
class CheckResult:
    """The rows of a check that was run on one account."""

    check: Check
    rows: list[Row]
    complete: bool = True  # False if options limited the check's regions
    evaluated: int = 0  # number of resources looked at; of rows, if the check counts no resources

    # these fields of a result are for diff_with_state and evaluate_control, not for JSON
    regions: Collection[str] = field(default=(), compare=False)  # regions that were looked at
    failed_targets: Collection[str] = field(default=(), compare=False)
    targets_complete: bool = field(default=True, compare=False)  # False if targets were not listed
    # numbers of resources evaluated, by control; the whole check's number is under ""
    evaluated_by_control: Counter[str] = field(default_factory=Counter, compare=False)


# --- what is remembered from month to month -------------------------------------------


class KnownFinding(NamedTuple):
    """A finding, or something NOT CHECKED that was one, as the state file remembers it."""

    first_seen: str  # the day on which the finding was first seen, such as 2030-12-31
    result: str
    target: str = ""
    severity: str = ""  # the severity and the fields below are blank in schema 1 of the state
    control: str = ""
    extent: frozenset[str] = frozenset()
    resource: str = ""
    accepted: bool = False
    worse_since: str = ""  # the day of the audit that last saw the finding, if it was WORSE then
    was: str = ""  # the sentence of the finding before it became WORSE


@dataclass(frozen=True)
class HistoryEntry:
    """A day of the history: the numbers of findings after its audits."""

    day: str
    open: dict[str, int]  # number of open findings by severity, after the last audit of the day
    not_checked: int = 0
    new: int = 0
    days_open: tuple[int, ...] = ()  # how long each finding resolved that day was open, in days
    remembered: int = 0  # number of findings counted as open, but not looked at on that day


class CoveredFinding(NamedTuple):
    """A finding as it was when an acceptance first held for it."""

    severity: str
    control: str
    extent: frozenset[str]


class Coverage(NamedTuple):
    """The findings that an acceptance covered when it first held."""

    worst: str  # the most serious severity of the covered findings
    findings: dict[str, CoveredFinding]  # the covered findings, by ID


@dataclass(frozen=True)
class AccountState:
    """The memory of one account in the state file."""

    since: dict[str, str] = field(default_factory=dict)  # day of each check's first audit
    findings: dict[str, KnownFinding] = field(default_factory=dict)  # known findings, by ID
    history: tuple[HistoryEntry, ...] = ()
    coverage: dict[str, Coverage] = field(default_factory=dict)  # what each accept-file line covers
    resolved: dict[str, KnownFinding] = field(default_factory=dict)  # findings resolved on last_day
    last_day: str = ""  # the day of the last audit
    max_key_age: int = 0  # --max-key-age of the last check of keys, in days; 0 if not known
    account_status: str = ACTIVE  # the account's organization status in the last run


# --- one account, and many ------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """The question that a report answers: the checks, accounts, regions and limits of its run."""

    checks: list[str]  # names of the checks that were run
    regions: list[str]  # regions to which --region limited the audit; empty: all enabled ones
    max_key_age: int  # days: the greatest age of an access key
    version: str  # the version of this script
    excluded_regions: list[str] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)  # accounts named by --account; empty: all
    excluded_accounts: list[str] = field(default_factory=list)
    fail_on: str = LOW  # the lowest severity that counts for the exit code
    rules: str = RULES_DATE


@dataclass(frozen=True)
class Report:
    """The audit of one account, as plain data.

    With an `error` there are no results: the account could not be opened. An account that is
    not ACTIVE has neither.
    """

    account: str  # the account's number
    started: datetime
    name: str = ""  # the account's name in its organization, or the name of its profile
    account_status: str = ACTIVE  # the account's status in its organization
    error: AwsError | None = None
    profile: str = ""  # the AWS CLI profile that reaches the account
    error_acceptance: Acceptance | None = None  # the acceptance of `error`, if there is one
    file_errors: list[str] = field(default_factory=list)  # each file not written, and why
    auditor_arn: str = ""
    home_region: str = ""  # the region for calls to global services, such as IAM
    question: Question | None = None  # None if the report has no results
    aliases: list[str] = field(default_factory=list)
    regions: list[str] | AwsError = field(default_factory=list)
    enabled_regions: int = 0  # number of regions enabled in the account; 0 if not known
    seconds: float = 0  # duration of the audit in seconds
    workbook: str = ""  # the absolute path of the workbook, or its s3:// name
    results: list[CheckResult] = field(default_factory=list)
    controls: dict[str, ControlStatus] = field(default_factory=dict)
    first_run: bool = False  # True if one of the checks had never run before this day
    resolved: dict[str, KnownFinding] | None = None  # findings resolved today; None without --state
    history: list[HistoryEntry] = field(default_factory=list)

    def rows(self, status: str = "") -> list[Row]:
        """The rows of all checks, or only those with the given status."""
        found = (row for result in self.results for row in result.rows)
        return [row for row in found if not status or row.status == status]

    def errors(self) -> list[AwsError]:
        """The errors that make the report incomplete, also in writing files; not accepted ones."""
        own = [self.error] if self.error and not self.error_acceptance else []
        files = [AwsError("NotWritten", detail=why) for why in self.file_errors]
        return [*own, *files, *(row.error for row in self.rows(NOT_CHECKED) if row.error)]

    @property
    def status(self) -> str:
        """NOT CHECKED or ACCEPTED if the account was not opened, else its organization status."""
        if self.error:
            return ACCEPTED if self.error_acceptance else NOT_CHECKED
        return self.account_status

    def credentials_expired(self) -> bool:
        """Whether one of the errors is that credentials expired, in the audit or before it."""
        return any(error.code in EXPIRED_CODES for error in self.errors())

    def exit_code(self) -> int:
        """The exit code: 3 if the report is incomplete, 1 if --fail-on counts a finding, else 0."""
        least = self.question.fail_on if self.question else LOW
        counting = SEVERITIES[: SEVERITIES.index(least) + 1]
        found = any(row.severity in counting for row in self.rows(FINDING))
        return 3 if self.errors() else int(found)

    def needs_attention(self) -> bool:
        """Whether a person should look: errors, ended acceptances, new or worse findings.

        On the first run of a check, or without a state, every finding counts as new.
        """
        findings = self.rows(FINDING)
        if self.errors() or any(row.acceptance_ended for row in findings):
            return True
        if self.resolved is None or self.first_run:
            return bool(findings)
        return any(row.change in (NEW, WORSE) for row in findings)

    def sort_key(self) -> tuple[Any, ...]:
        """The sort key: first accounts that could not be opened, then those with worse findings."""
        levels = Counter(row.level for row in self.rows())
        worst = (-levels[severity] for severity in SEVERITIES)
        return not self.error, *worst, -len(self.errors()), self.account


@dataclass(frozen=True)
class AccountJob:
    """An account of a run, before there is a report of it."""

    account: str  # number of the account; blank if not known yet
    name: str = ""
    profile: str = ""
    account_status: str = ACTIVE
    error: AwsError | None = None  # why the account cannot be opened, if that is already known
    open: Callable[[], Account] | None = None  # opens the account; None if it is not to be audited

    def report(self, started: datetime, error: AwsError | None = None) -> Report:
        """A report without results, with the given error or else that of the job, if any."""
        status, error = self.account_status, error or self.error
        return Report(self.account, started, self.name, status, error, self.profile)


@dataclass(frozen=True)
class Overview:
    """The content of the terminal and the workbook: one report, or several, the worst first."""

    reports: list[Report]
    started: datetime
    seconds: float
    path: str  # path of the workbook
    multi_account: bool = False
    with_state: bool = False
    scope: str = ""  # the accounts together, such as `AWS organization of 123456789012`
    auditor_arn: str = ""
    remarks: list[str] = field(default_factory=list)  # remarks on the accept file

    @classmethod
    def of_one(cls, report: Report) -> Overview:
        """The overview of a single account."""
        with_state = report.resolved is not None
        return cls([report], report.started, report.seconds, report.workbook, with_state=with_state)

    def exit_code(self) -> int:
        """The highest exit code of all reports; 3 if no account was audited."""
        audited = any(report.results for report in self.reports)
        return max(report.exit_code() for report in self.reports) if audited else 3

    def needs_attention(self) -> bool:
        """Whether any account has errors, ended acceptances, or new or worse findings."""
        return any(report.needs_attention() for report in self.reports)


# --- cached calls ---------------------------------------------------------------------

P = ParamSpec("P")
T = TypeVar("T")


def once(function: Callable[Concatenate[Account, P], T]) -> Callable[Concatenate[Account, P], T]:
    """Caches what a function of an account returns or raises, for all threads of the audit.

    Errors are cached, so that every check gets the same answer. A cached function must not wait
    for a cached function of another check.
    """

    @functools.wraps(function)
    def cached(aws: Account, *args: P.args, **kwargs: P.kwargs) -> T:
        """The cached result or error; the first caller makes it, and others wait for it."""
        with aws.lock:
            first = (key := (function, args, *kwargs.items())) not in aws.cache
            future: Future[T] = aws.cache.setdefault(key, Future())
        if first:
            try:
                future.set_result(function(aws, *args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    return cached  # type: ignore[return-value]


def for_each(
    function: Callable[[Account, str], Any], names: Callable[[Account], Iterable[str]]
) -> Callable[[Account], None]:
    """A function for Check.prefetch, which calls a cached function for every name, in threads."""

    def call_all(aws: Account) -> None:
        """Calls the function for every name, in threads; the results are only cached."""
        with ThreadPoolExecutor(PREFETCH_THREADS) as pool:
            for name in names(aws):
                pool.submit(function, aws, name)

    return call_all


# --- words ----------------------------------------------------------------------------


def counted(number: int, noun: str) -> str:
    """A number with its noun, which gets an s unless the number is 1.

    >>> counted(1, "rule"), counted(1234, "rule")
    ('1 rule', '1,234 rules')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_words(names: Iterable[str], most: int = 4) -> str:
    """The names, without repetitions, as words; of more than `most`, the last are only counted.

    >>> in_words(["a", "b", "a", "c"]), in_words("abcdef")
    ('a, b and c', 'a, b, c and 3 more')
    """
    distinct = [*dict.fromkeys(names)]
    if len(distinct) > most:
        distinct[most - 1 :] = [f"{len(distinct) - most + 1:,} more"]
    return " and ".join(filter(None, (", ".join(distinct[:-1]), *distinct[-1:])))


def yes_no(value: Any) -> str:
    """The word `yes` for a value that is true, else the word `no`."""
    return "yes" if value else "no"


def not_checked_row(target: str, item: str, cells: dict[str, Cell], error: AwsError) -> Row:
    """A row that is NOT CHECKED because of an error."""
    return Row(target, item, cells, error=error)


def utc_now() -> datetime:
    """The present time in UTC; tests replace this function."""
    return datetime.now(timezone.utc)


def start_of_day(day: str) -> datetime:
    """The first moment (UTC) of a day such as 2030-12-31; ValueError for any other text."""
    if not re.fullmatch(r"2\d{3}-\d\d-\d\d", day, re.ASCII):
        raise ValueError(f"{day} is not a date like 2030-12-31")
    return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=timezone.utc)


# === checks ===========================================================================

IAM_THREADS = 8  # threads of a check of IAM, which throttles the account as a whole

# The controls of Security Hub, by the numbers that its console shows, are described at
# docs.aws.amazon.com/securityhub/latest/userguide/, pages ec2-, iam-, cloudtrail- and
# s3-controls.html; cis-aws-foundations-benchmark.html has their CIS numbers, and
# pci-standard.html says which of them belong to PCI DSS.


def cli_option(name: str, value: str) -> tuple[str, ...]:
    """The words for an option of the AWS CLI: `--name=value` if the value begins with a dash."""
    return (f"--{name}={value}",) if value.startswith("-") else (f"--{name}", value)


def cli_command(aws: Account, region: str, *words: str) -> str:
    """The quoted shell command `aws ...`, with region (blank: the home region) and profile.

    The words are quoted because others choose the names of resources.
    """
    words = ("aws", *words, "--region", region or aws.home_region)
    return shlex.join((*words, *(cli_option("profile", aws.profile) if aws.profile else ())))


def shell_line(line: str) -> Remediation:
    """The remediation by a shell command; by hand if it is too long or not all printable."""
    if line.isprintable() and len(line) <= MAX_CELL_TEXT:
        return Remediation(line)
    return Remediation(manual="too long, or odd characters: by hand")


def aws_cli(aws: Account, region: str, *words: str) -> Remediation:
    """The remediation by a single command of the AWS CLI, made by `cli_command`."""
    return shell_line(cli_command(aws, region, *words))


def answer_or_error(ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | AwsError:
    """The result of the function, or the AwsError if its call to AWS failed."""
    try:
        return ask(*args, **kwargs)
    except AwsCallFailed as failed:
        return failed.error


# --- targets --------------------------------------------------------------------------


@once
def enabled_regions(aws: Account) -> list[str]:
    """The names of all regions that are enabled in the account."""
    return sorted(region["RegionName"] for region in aws.ask("ec2", "DescribeRegions")["Regions"])


def regions(aws: Account) -> list[str]:
    """The regions to check: those left by --region and --exclude-region, or all enabled ones."""
    return sorted(aws.only_regions) or enabled_regions(aws)


@once
def users_by_name(aws: Account) -> dict[str, dict[str, Any]]:
    """The IAM users as ListUsers describes them, by name."""
    return {user["UserName"]: user for user in aws.fetch("iam", "ListUsers", "Users")}


def users(aws: Account) -> Iterator[str]:
    """The names of root and of all IAM users, root first."""
    yield ROOT
    yield from users_by_name(aws)


def user_arn(aws: Account, user: str) -> str:
    """The ARN of an IAM user, with its path, or of root; blank if there is no such user."""
    root = f"arn:{aws.partition}:iam::{aws.number}:root"
    return root if user == ROOT else str(users_by_name(aws).get(user, {}).get("Arn", ""))


@once
def bucket_regions(aws: Account) -> dict[str, str]:
    """The region of every bucket, by bucket name; blank if ListBuckets does not tell it."""
    found = aws.fetch("s3", "ListBuckets", "Buckets")
    return {bucket["Name"]: bucket.get("BucketRegion", "") for bucket in found}


@once
def account_aliases(aws: Account) -> list[str]:
    """The aliases of the account in a list: one at most."""
    return list(aws.fetch("iam", "ListAccountAliases", "AccountAliases"))


REGION_TARGETS = TargetKind("regions", regions, regional=True)
USER_TARGETS = TargetKind("users", users, arn=user_arn)
BUCKET_TARGETS = TargetKind("buckets", bucket_regions)

# --- check 1: EC2-Classic -------------------------------------------------------------


def is_classic(instance: dict[str, Any]) -> bool:
    """Whether an instance is outside a VPC; never if it is shutting down or terminated.

    Instances that are shutting down or terminated have no VpcId any more:
    https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Instance.html
    """
    ending = instance["State"]["Name"] in ("shutting-down", "terminated")
    return not instance.get("VpcId") and not ending


def name_tag(instance: dict[str, Any]) -> str:
    """The value of an instance's tag `Name`; blank if it has none."""
    tags = instance.get("Tags") or ()
    return next((tag["Value"] for tag in tags if tag["Key"] == "Name"), "")


@check(
    "EC2-Classic",
    targets=REGION_TARGETS,
    columns=("Region", "Instance ID", "Name", "State", "Launched"),
    name_columns=("Name", "Instance ID", "Region"),
    row_noun="instance",
    arn="arn:{partition}:ec2:{Region}:{account}:instance/{Instance ID}",
    coverage="Instances that are not terminated, in every state. Nothing else of EC2 is looked at.",
    description="Instances outside a VPC. Move each into a VPC: nothing isolates it from others.",
    docs="https://docs.aws.amazon.com/vpc/latest/userguide/what-is-amazon-vpc.html",
    console_links={
        "Instance ID": "ec2/home?region={Region}#InstanceDetails:instanceId={Instance ID}"
    },
    empty_message="No instance outside a VPC among {evaluated:,} in {targets:,} regions",
)
def check_ec2_classic(aws: Account, region: str) -> Rows:
    """Finds instances outside a VPC. The severity is ours: AWS retired EC2-Classic."""
    evaluated = 0
    for reservation in aws.fetch(
        "ec2", "DescribeInstances", "Reservations", region, IncludeManagedResources=True
    ):
        evaluated += len(reservation["Instances"])
        for instance in filter(is_classic, reservation["Instances"]):
            id, state = instance["InstanceId"], instance["State"]["Name"]
            cells: dict[str, Cell] = {
                "Region": region, "Instance ID": id, "Name": name_tag(instance),
                "State": state, "Launched": instance["LaunchTime"],
            }  # fmt: skip
            yield Row(
                region, id, cells, Message(f"is {state} outside a VPC"), HIGH,
                remediation=Remediation(manual="move it by hand"),
                kind="Instance outside a VPC", priority=2 if state == "running" else 0,
            )  # fmt: skip
    return evaluated


# --- check 2: security groups, sources ------------------------------------------------

# Networks without a host on the Internet; of IPv6, they leave only 2000::/3.
# https://www.iana.org/assignments/iana-ipv4-special-registry
NON_PUBLIC_NETWORKS = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3", "::/3", "4000::/2", "8000::/1"),
)
# The least number of public addresses, by IP version, that is a large part of the Internet: as
# many as two IPv4 /8 have, or an IPv6 /12, which IANA gives to a regional registry as a whole.
MANY_ADDRESSES = {4: 2 * 2**24, 6: 2**116}
WHOLE_INTERNET = {4: "0.0.0.0/0", 6: "::/0"}  # the CIDR of all addresses, by IP version
SOURCE_FIELDS = {"IpRanges": "CidrIp", "Ipv6Ranges": "CidrIpv6", "PrefixListIds": "PrefixListId"}
FILTER_VALUES = 200  # the most values in a filter of DescribeNetworkInterfaces


class Exposure(NamedTuple):
    """The part of the Internet that some sources let in together; blank if it is small."""

    whole: bool = False
    versions: tuple[int, ...] = ()  # IP versions of which the sources let in all, or a large part
    open_to: tuple[str, ...] = ()  # CIDRs to show: 0.0.0.0/0 and ::/0, else the public ranges
    text: str = ""  # in words: `the whole Internet`, `56 % of the Internet`
    levels: tuple[int, ...] = (0, 0)  # for each IP version: 2 if all of it is open, 1 a large part

    @property
    def reach(self) -> tuple[bool, tuple[int, ...]]:
        """The exposure to compare: whether it is whole, and of which IP versions; no percentage."""
        return self.whole, self.versions


@functools.lru_cache(maxsize=4096)
def loose_network(cidr: str) -> Any:
    """The network of a CIDR without its host bits: 10.0.0.0/0 is 0.0.0.0/0, as AWS reads it."""
    return ip_network(cidr, strict=False)


def networks_of(cidrs: Iterable[str], version: int) -> list[Any]:
    """The CIDRs of one IP version, as networks."""
    return [net for net in map(loose_network, cidrs) if net.version == version]


def number_of_addresses(networks: Iterable[Any]) -> int:
    """The number of different addresses in networks of one IP version."""
    return sum(net.num_addresses for net in collapse_addresses(networks))


@functools.lru_cache(maxsize=4096)
def public_addresses(cidrs: frozenset[str], version: int) -> int:
    """The number of addresses of the Internet that the CIDRs cover together.

    >>> public_addresses(frozenset(["8.0.0.0/8", "8.0.0.0/9", "10.0.0.0/8"]), 4) == 2**24
    True
    """
    private = networks_of(NON_PUBLIC_NETWORKS, version)
    covered = [*networks_of(cidrs, version), *private]
    return number_of_addresses(covered) - number_of_addresses(private)


ALL_ADDRESSES = {v: public_addresses(frozenset([cidr]), v) for v, cidr in WHOLE_INTERNET.items()}


def share_of(cidrs: Iterable[str], version: int) -> float:
    """The share of the Internet of one IP version, from 0 to 1, that the CIDRs cover together."""
    return public_addresses(frozenset(cidrs), version) / ALL_ADDRESSES[version]


def is_private(network: Any) -> bool:
    """Whether no host on the Internet has an address in the network."""
    return any(map(network.subnet_of, networks_of(NON_PUBLIC_NETWORKS, network.version)))


def exposure(*cidrs: Iterable[str]) -> Exposure:
    """The exposure that all these CIDRs make together; blank if it is small.

    >>> exposure(["0.0.0.0/1", "128.0.0.0/1"]).text, exposure(["10.0.0.0/7"]).text
    ('the whole Internet', '')
    >>> exposure(["8.0.0.0/8", "9.0.0.0/8"]).text, exposure(["2000::/4"]).text
    ('1 % of the Internet', '50 % of the IPv6 Internet')
    """
    return exposure_of(frozenset[str]().union(*cidrs))


@functools.lru_cache(maxsize=4096)  # cached, as many security groups have the same sources
def exposure_of(cidrs: frozenset[str]) -> Exposure:
    """The exposure that a set of CIDRs makes together, as `exposure` returns it."""
    counts = {}
    for version, many in MANY_ADDRESSES.items():
        sizes = sum(net.num_addresses for net in networks_of(cidrs, version))
        counts[version] = public_addresses(cidrs, version) if sizes >= many else 0
    whole = tuple(version for version in counts if counts[version] == ALL_ADDRESSES[version])
    large = tuple(version for version in counts if counts[version] >= MANY_ADDRESSES[version])
    levels = tuple((version in large) + (version in whole) for version in counts)
    if whole:
        text = f"the whole {'' if 4 in whole else 'IPv6 '}Internet"
        networks = tuple(WHOLE_INTERNET[version] for version in whole)
        return Exposure(True, whole, networks, text, levels)
    public = (filterfalse(is_private, networks_of(cidrs, version)) for version in large)
    ranges = (str(net) for networks in public for net in collapse_addresses(networks))
    percent = {v: min(max(round(100 * counts[v] / ALL_ADDRESSES[v]), 1), 99) for v in large}
    texts = (f"{percent[v]} % of the {'IPv6 ' if v == 6 else ''}Internet" for v in large)
    return Exposure(False, large, tuple(ranges), in_words(texts), levels)


def sources_to_remove(cidrs: Collection[str], others: Collection[str] = ()) -> list[str]:
    """The CIDRs to remove so that the rest adds no exposure to that of the others.

    The widest are removed first, and always all that are equally wide.

    >>> sources_to_remove(["0.0.0.0/0", "8.8.8.8/32"])
    ['0.0.0.0/0']
    >>> sources_to_remove(["8.0.0.0/8", "9.0.0.0/8", "11.0.0.0/16"])
    ['8.0.0.0/8', '9.0.0.0/8']
    """
    widths = defaultdict[tuple[int, int], list[str]](list)
    for cidr in cidrs:
        if not is_private(net := loose_network(cidr)):
            widths[net.prefixlen, net.version].append(cidr)
    allowed, removed = exposure(others).levels, list[str]()
    for (_, version), equally_wide in sorted(widths.items()):
        left = [cidr for cidr in cidrs if cidr not in removed]
        place = [*WHOLE_INTERNET].index(version)
        if exposure(left, others).levels[place] > allowed[place]:
            removed += equally_wide
    return removed


# --- check 2: security groups, ports --------------------------------------------------

HIGH_RISK_PORTS = {  # the high-risk ports that Security Hub EC2.19 lists
    20: "FTP data", 21: "FTP", 22: "SSH", 23: "Telnet", 25: "SMTP", 110: "POP3", 135: "RPC",
    143: "IMAP", 445: "SMB", 1433: "SQL Server", 1434: "SQL Server", 3000: "web development",
    3306: "MySQL", 3389: "RDP", 4333: "mSQL", 5000: "web development", 5432: "PostgreSQL",
    5500: "VNC", 5601: "OpenSearch Dashboards", 8080: "HTTP proxy", 8088: "HTTP", 8888: "HTTP",
    9200: "OpenSearch", 9300: "OpenSearch",
}  # fmt: skip
REMOTE_LOGIN_PORTS = {22, 3389}  # ports of SSH and RDP
WEB_PORTS = {80: "HTTP", 443: "HTTPS"}  # ports that Security Hub EC2.18 allows
PORT_NAMES = HIGH_RISK_PORTS | WEB_PORTS  # names of TCP ports
ALL_PORTS = range(65536)
PORT_PROTOCOLS = ("TCP", "UDP")  # the only protocols whose rules have ports

# Names of protocols, by number: https://www.iana.org/assignments/protocol-numbers
PROTOCOLS = {
    "-1": "ALL", "1": "ICMP", "2": "IGMP", "4": "IPv4", "6": "TCP", "17": "UDP", "41": "IPv6",
    "47": "GRE", "50": "ESP", "51": "AH", "58": "ICMPv6", "89": "OSPF", "112": "VRRP",
    "132": "SCTP",
}  # fmt: skip


def protocol_name(protocol: str) -> str:
    """The name of a rule's protocol, such as TCP; a number without a known name stays.

    >>> protocol_name("6"), protocol_name("udp"), protocol_name("200")
    ('TCP', 'UDP', '200')
    """
    return PROTOCOLS.get(protocol) or ("ICMPv6" if protocol == "icmpv6" else protocol.upper())


class PortRange(NamedTuple):
    """The protocol and ports of a rule. ICMP has a type and a code in their place."""

    protocol: str  # name of the protocol; ALL is every protocol
    first: int | None
    last: int | None

    @classmethod
    def of_rule(cls, rule: dict[str, Any]) -> PortRange:
        """The protocol and ports of a rule, which EC2 describes as an IpPermission."""
        return cls(protocol_name(rule["IpProtocol"]), rule.get("FromPort"), rule.get("ToPort"))

    @property
    def ports(self) -> range:
        """The numbers of the opened ports; none for a protocol without ports, such as ICMP."""
        if self.protocol not in ("ALL", *PORT_PROTOCOLS):
            return range(0)
        if self.protocol == "ALL" or self.first is None or self.first == -1:
            return ALL_PORTS
        return range(self.first, (self.first if self.last is None else self.last) + 1)

    def numbers(self) -> str:
        """The ports as text, such as `22`, `20-30` or `ALL`; for ICMP the type and code.

        >>> PortRange("TCP", 22, 22).numbers(), PortRange("ICMP", 8, -1).numbers()
        ('22', 'type 8')
        """
        if self.protocol.startswith("ICMP"):
            if self.first in (None, -1):
                return "ALL types"
            return f"type {self.first}" + ("" if self.last in (None, -1) else f" code {self.last}")
        opened = self.ports
        if len(opened) in (0, len(ALL_PORTS)):
            return "ALL"
        return f"{opened[0]}-{opened[-1]}" if len(opened) > 1 else f"{opened[0]}"

    def name(self) -> str:
        """The usual service of a single TCP port, such as SSH; else blank."""
        single = self.protocol == "TCP" and len(self.ports) == 1
        return PORT_NAMES.get(self.ports[0], "") if single else ""

    def cell(self) -> str:
        """The text of the column Ports, such as `22 (SSH)`, `8000-9000` or `ALL`."""
        return f"{self.numbers()} ({self.name()})" if self.name() else self.numbers()

    def service(self) -> str:
        """The ports as words in a sentence, such as `SSH (22)`, `UDP 22` or `all ports`.

        >>> PortRange("TCP", 22, 22).service(), PortRange("UDP", 22, 22).service()
        ('SSH (22)', 'UDP 22')
        """
        name, numbers = self.name(), self.numbers()
        if self.protocol == "ALL":
            return "all ports"
        if self.protocol not in PORT_PROTOCOLS:
            return self.protocol if numbers.startswith("ALL") else f"{self.protocol} {numbers}"
        if numbers == "ALL":
            return f"all {self.protocol} ports"
        return f"{name} ({numbers})" if name else f"{self.protocol} {numbers}"

    def parts(self, others: Collection[PortRange]) -> Iterator[PortRange]:
        """The ports in pieces, cut where the others begin and end; ALL becomes TCP and UDP.

        >>> [part.numbers() for part in PortRange("TCP", 20, 30).parts([PortRange("TCP", 22, 22)])]
        ['20-21', '22', '23-30']
        """
        if not self.ports:
            yield self
            return
        for protocol in PORT_PROTOCOLS if self.protocol == "ALL" else (self.protocol,):
            ranges = [other.ports for other in others if other.protocol == protocol]
            cuts = {edge for one in ranges for edge in (one.start, one.stop) if edge in self.ports}
            for first, end in pairwise(sorted({self.ports.start, *cuts, self.ports.stop})):
                yield PortRange(protocol, first, end - 1)

    def covers(self, part: PortRange) -> bool:
        """Whether these ports include a whole piece that `parts` has cut."""
        same = self.protocol == part.protocol and part.first in self.ports
        return self.protocol == "ALL" or self == part or same


# --- check 2: security groups, rules --------------------------------------------------

# How each control decides, by the rule of AWS Config behind it (the control's page in the user
# guide names it; docs.aws.amazon.com/config/latest/developerguide/ has a page for each rule):
# restricted-ssh and restricted-common-ports (EC2.14, EC2.19) are about TCP,
# vpc-sg-port-restriction-check (EC2.53, EC2.54) and vpc-sg-open-only-to-authorized-ports (EC2.18)
# about TCP and UDP. All of them look for 0.0.0.0/0 and ::/0 themselves. By default,
# vpc-sg-port-restriction-check leaves out groups of other accounts; we do so for all controls.
# restricted-common-ports speaks of groups in use; the controls do not, and neither do we.
GROUP_CONTROLS = {
    "EC2.13": Control(HIGH, "SSH (TCP 22) is closed to the Internet", pci="1.3.1"),
    "EC2.14": Control(HIGH, "RDP (TCP 3389) is closed to the Internet", pci="1.3.1"),
    "EC2.18": Control(HIGH, "Only TCP 80 and 443 are open to the Internet"),
    "EC2.19": Control(CRITICAL, "No high-risk TCP port is open to the Internet"),
    "EC2.53": Control(HIGH, "TCP and UDP 22 and 3389 are closed to IPv4", "5.3", "5.2", "1.3.1"),
    "EC2.54": Control(HIGH, "TCP and UDP 22 and 3389 are closed to IPv6", "5.4", "5.3", "1.3.1"),
}


class Sources(NamedTuple):
    """The sources of the inbound rules of a group for one port range."""

    cidrs: list[str]
    lists: dict[str, list[str]]  # CIDRs of each prefix list that was read, by its ID
    unread: dict[str, AwsError]  # errors of prefix lists that could not be read

    def all_cidrs(self) -> list[str]:
        """The CIDRs of the rules and of those prefix lists that were read."""
        return [*self.cidrs, *(cidr for listed in self.lists.values() for cidr in listed)]


class OpenRule(NamedTuple):
    """The inbound rules of a group for one port range, if they let in the Internet or may."""

    group: dict[str, Any]  # the group as DescribeSecurityGroups describes it
    ports: PortRange
    sources: Sources
    exposure: Exposure
    reached: PortRange  # ports with the exposure: all, or a part that other rules widen
    partners: dict[PortRange, list[str]]  # CIDRs of other rules that add to the exposure


def owner_of(aws: Account, group: dict[str, Any]) -> str:
    """The number of the account that owns a security group; it may not be the audited one."""
    return str(group.get("OwnerId") or aws.number)


def failed_group_controls(ports: PortRange, cidrs: Iterable[str]) -> list[str]:
    """The controls that a rule with these ports and CIDRs fails, the most severe first.

    The controls match only 0.0.0.0/0 and ::/0, also inside prefix lists. They ignore whether the
    group is used, and VPC block public access.
    """
    whole = [net for net in map(loose_network, cidrs) if net.prefixlen == 0]
    opened = ports.ports if whole else range(0)
    tcp = opened if ports.protocol in ("ALL", "TCP") else range(0)
    web = ports.protocol == "TCP" and all(port in WEB_PORTS for port in opened)
    remote_login = any(port in opened for port in REMOTE_LOGIN_PORTS)
    failed = {
        "EC2.19": any(port in tcp for port in HIGH_RISK_PORTS),
        "EC2.13": 22 in tcp,
        "EC2.14": 3389 in tcp,
        "EC2.18": bool(opened) and not web,
        "EC2.53": remote_login and any(net.version == 4 for net in whole),
        "EC2.54": remote_login and any(net.version == 6 for net in whole),
    }
    return [control for control, fails in failed.items() if fails]


def port_severity(ports: PortRange) -> str:
    """The severity of the worst control that fails if the whole Internet reaches these ports.

    If no control fails the severity is ours: High for protocols without ports, Low for ICMP and the
    web.
    """
    if failed := failed_group_controls(ports, WHOLE_INTERNET.values()):
        return GROUP_CONTROLS[failed[0]].severity
    return LOW if ports.ports or ports.protocol.startswith("ICMP") else HIGH


Rules = dict[PortRange, list[str]]  # CIDRs of a group's inbound rules, by port range


def exposed_together(rules: Rules) -> tuple[Exposure, Rules]:
    """The fewest of the widest rules that reach as far as all together, after their exposure."""
    together = exposure(*rules.values())
    widest = sorted(rules, key=lambda ports: -max(share_of(rules[ports], v) for v in (4, 6)))
    for number in range(1, len(rules) + 1) if together.versions else ():
        used = {ports: rules[ports] for ports in widest[:number]}
        found = exposure(*used.values())
        if found.reach == together.reach:
            return found, used
    return Exposure(), {}


def most_exposed(rules: Rules, ports: PortRange) -> tuple[Exposure, PortRange, Rules]:
    """The greatest exposure of the rule of `ports`, alone or with others; its ports; the others.

    Other rules may add to it for some of its ports only; the greatest exposure is returned.
    """
    alone = exposure(rules[ports])
    found: list[tuple[Exposure, PortRange, Rules]] = [(alone, ports, {})]
    for part in () if alone.whole else ports.parts(rules):
        together, used = exposed_together({o: rules[o] for o in rules if o.covers(part)})
        if ports in used and len(used) > 1:
            found.append((together, part, {other: used[other] for other in used if other != ports}))
    return max(found, key=exposure_rank)


def exposure_rank(found: tuple[Exposure, PortRange, Rules]) -> tuple[Any, ...]:
    """The sort key, the worst last: the whole Internet by ports, else by size, then by ports."""
    (whole, *_, levels), ports, _ = found
    severity = -SEVERITIES.index(port_severity(ports))
    return whole, severity if whole else 0, levels, severity


@once
def prefix_list(aws: Account, region: str, id: str) -> list[str]:
    """The CIDRs of a managed prefix list."""
    operation = "GetManagedPrefixListEntries"
    entries = aws.fetch("ec2", operation, "Entries", region, page_size=100, PrefixListId=id)
    return [entry["Cidr"] for entry in entries]


def read_sources(aws: Account, region: str, names: Iterable[str]) -> Sources:
    """The sources that CIDRs and list IDs name; no list is read if the CIDRs open everything."""
    sources = Sources([name for name in names if not name.startswith("pl-")], {}, {})
    everything = exposure(sources.cidrs).levels == (2, 2)
    for id in () if everything else sorted({name for name in names if name.startswith("pl-")}):
        try:
            sources.lists[id] = prefix_list(aws, region, id)
        except AwsCallFailed as failed:
            sources.unread[id] = failed.error
    return sources


def open_rules(aws: Account, region: str, group: dict[str, Any]) -> Iterator[OpenRule]:
    """The rules by port range that, alone or together, are open, or have an unread prefix list."""
    names: dict[PortRange, list[str]] = defaultdict(list)
    for rule in group["IpPermissions"]:
        for kind, name in SOURCE_FIELDS.items():
            names[PortRange.of_rule(rule)] += [one[name] for one in rule.get(kind) or ()]
    sources = {ports: read_sources(aws, region, names[ports]) for ports in names}
    rules = {ports: sources[ports].all_cidrs() for ports in names}
    closed = not exposure(*rules.values()).versions
    for ports in names:
        found = (Exposure(), ports, {}) if closed else most_exposed(rules, ports)
        if found[0].versions or sources[ports].unread:
            yield OpenRule(group, ports, sources[ports], *found)


def lists_in(rule: OpenRule) -> list[str]:
    """The IDs of the prefix lists on which the exposure of a rule depends."""
    if exposure(rule.sources.cidrs, *rule.partners.values()).reach == rule.exposure.reach:
        return []
    lists = rule.sources.lists
    return [id for id, cidrs in lists.items() if exposure(cidrs).versions] or [*lists]


def revoke_commands(rule: OpenRule) -> Iterator[tuple[str, ...]]:
    """The AWS CLI words that remove the sources which open a rule, a command for each source.

    A command for several sources would remove nothing if one of them is gone already. The sources
    that stay are no finding.
    """
    wide = (id for id, cidrs in rule.sources.lists.items() if exposure(cidrs).versions)
    lists = {*lists_in(rule), *wide}  # a prefix list that is wide by itself must be removed, too
    kept = [cidr for id, cidrs in rule.sources.lists.items() if id not in lists for cidr in cidrs]
    others = [cidr for cidrs in (kept, *rule.partners.values()) for cidr in cidrs]
    cidrs = rule.sources.cidrs
    removed = {*sources_to_remove(cidrs), *sources_to_remove(cidrs, others), *lists}
    operation, group_id = "revoke-security-group-ingress", rule.group["GroupId"]
    permissions = rule.group["IpPermissions"]
    for permission in (one for one in permissions if PortRange.of_rule(one) == rule.ports):
        names = ("IpProtocol", "FromPort", "ToPort")
        about = {name: permission[name] for name in names if name in permission}
        for kind, name in SOURCE_FIELDS.items():
            for source in (one[name] for one in permission.get(kind) or () if one[name] in removed):
                text = json.dumps([about | {kind: [{name: source}]}], separators=(",", ":"))
                yield "ec2", operation, "--group-id", group_id, "--ip-permissions", text


# --- check 2: security groups, usage --------------------------------------------------


def describe_usage(interfaces: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The text of the column Used by, as `2 interfaces, 1 public`, and the sentence's end."""
    if not interfaces:
        return "no interface", "; no interface has it now"
    number, public = counted(len(interfaces), "interface"), sum(map(is_public, interfaces))
    use, some = "uses" if len(interfaces) == 1 else "use", f"{public:,}" if public else "none"
    return f"{number}, {public:,} public", f"; {number} {use} it, {some} with a public address"


def interfaces_with(
    aws: Account, region: str, filter_name: str, values: Iterable[str]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The network interfaces that match a filter, each with the values that its call asked for."""
    wanted = sorted(set(values))
    for batch in (wanted[n : n + FILTER_VALUES] for n in range(0, len(wanted), FILTER_VALUES)):
        for interface in aws.fetch(
            "ec2", "DescribeNetworkInterfaces", "NetworkInterfaces", region,
            Filters=[{"Name": filter_name, "Values": batch}], IncludeManagedResources=True,
        ):  # fmt: skip
            yield batch, interface


def interfaces_by_group(
    aws: Account, region: str, group_ids: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """The network interfaces of each group, by group ID."""
    found: dict[str, list[dict[str, Any]]] = {id: [] for id in group_ids}
    for batch, interface in interfaces_with(aws, region, "group-id", group_ids):
        for id in {group["GroupId"] for group in interface["Groups"]} & set(batch):
            found[id].append(interface)
    return found


def is_public(interface: dict[str, Any]) -> bool:
    """Whether an interface has an address that the Internet reaches.

    A customer-owned address (Outposts) belongs to a network of the customer, a carrier address
    (Wavelength) to that of a telephone company: the Internet reaches neither.
    https://docs.aws.amazon.com/wavelength/latest/developerguide/how-wavelengths-work.html
    """
    if interface.get("DenyAllIgwTraffic"):
        return False
    addresses = (interface, *(interface.get("PrivateIpAddresses") or ()))
    if any((address.get("Association") or {}).get("PublicIp") for address in addresses):
        return True
    ipv6 = [one["Ipv6Address"] for one in interface.get("Ipv6Addresses") or ()]
    ipv6 += [one["Ipv6Prefix"] for one in interface.get("Ipv6Prefixes") or ()]
    return any(ip_network(one, strict=False).is_global for one in ipv6)


@dataclass(frozen=True)
class VpcBlockPublicAccess:
    """The VPC block public access of a region. AWS applies it to the account's own VPCs only."""

    mode: str
    vpcs: frozenset[str] = frozenset()  # own VPCs of which nothing is excluded, no subnet either

    def blocks(self, group_vpc: str, interfaces: Sequence[dict[str, Any]]) -> str:
        """The text `VPC block public access (...)` if that stops traffic to the group; else blank.

        A load balancer in an excluded subnet reaches targets in all of its VPC:
        https://docs.aws.amazon.com/vpc/latest/userguide/security-vpc-bpa.html
        """
        # a security group may be used in other VPCs than its own
        vpcs = {group_vpc, *(interface.get("VpcId", group_vpc) for interface in interfaces)}
        stops = self.mode.startswith("block-") and vpcs <= self.vpcs
        return f"VPC block public access ({self.mode})" if stops else ""


@once
def vpc_block_public_access(aws: Account, region: str) -> VpcBlockPublicAccess:
    """The VPC block public access of a region: its mode, and the VPCs that it covers in full."""
    options = aws.ask("ec2", "DescribeVpcBlockPublicAccessOptions", region)
    mode = options["VpcBlockPublicAccessOptions"]["InternetGatewayBlockMode"]
    if mode == "off":
        return VpcBlockPublicAccess(mode)
    vpcs = aws.fetch("ec2", "DescribeVpcs", "Vpcs", region)
    own = {vpc["VpcId"] for vpc in vpcs if vpc["OwnerId"] == aws.number}
    operation, items = "DescribeVpcBlockPublicAccessExclusions", "VpcBlockPublicAccessExclusions"
    inactive = ("create-failed", "delete-complete", "disable-complete")
    excluded = {
        one["ResourceArn"].rpartition("/")[2]
        for one in aws.fetch("ec2", operation, items, region)
        if one["InternetGatewayExclusionMode"] == "allow-bidirectional"
        and one["State"] not in inactive
    }
    subnets = {id for id in excluded if id.startswith("subnet-")}
    inside = {one["VpcId"] for _, one in interfaces_with(aws, region, "subnet-id", subnets)}
    return VpcBlockPublicAccess(mode, frozenset(own - excluded - inside))


class Usage(NamedTuple):
    """The interfaces of a region's groups, and what may block traffic to them, or the errors."""

    interfaces: dict[str, list[dict[str, Any]]] | AwsError
    block: VpcBlockPublicAccess | AwsError


class GroupUsage(NamedTuple):
    """The use of a group, and what blocks inbound traffic to it."""

    used_by: str
    blocked_by: str  # what blocks inbound traffic to the group; blank if nothing does
    text: str = ""  # the end of a message: how the group is used and blocked
    unused: bool = False  # whether no interface has the group; False if that is not known
    public: bool = False  # whether an interface has an address that the Internet reaches


def read_usage(aws: Account, region: str, group_ids: set[str]) -> Usage:
    """The interfaces of the groups, and the region's VPC block public access, or their errors.

    No call is made if there are no groups.
    """
    if not group_ids:
        return Usage({}, VpcBlockPublicAccess("off"))
    interfaces = answer_or_error(interfaces_by_group, aws, region, group_ids)
    return Usage(interfaces, answer_or_error(vpc_block_public_access, aws, region))


def usage_of(group: dict[str, Any], usage: Usage) -> GroupUsage:
    """The use of a group; if VPC block public access stops traffic to it; NOT CHECKED if unread."""
    if isinstance(usage.interfaces, AwsError):
        return GroupUsage(NOT_CHECKED, NOT_CHECKED)
    if not (vpc := group.get("VpcId")):
        return GroupUsage("instances outside a VPC", "", "; instances outside a VPC may use it")
    interfaces = usage.interfaces[group["GroupId"]]
    used_by, text = describe_usage(interfaces)
    blocked = NOT_CHECKED
    if not isinstance(usage.block, AwsError):
        blocked = usage.block.blocks(vpc, interfaces)
        text += f"; {blocked} stops it" if blocked else ""
    return GroupUsage(used_by, blocked, text, not interfaces, any(map(is_public, interfaces)))


# --- check 2: security groups ---------------------------------------------------------


@check(
    "Security groups",
    targets=REGION_TARGETS,
    columns=(
        *("Region", "Group ID", "Group name", "VPC", "Protocol", "Ports", "Open to"),
        *("Used by", "Blocked by"),
    ),
    name_columns=("Group name", "Group ID", "Region"),
    row_noun="rule",
    arn="arn:{partition}:ec2:{Region}:{account}:security-group/{Group ID}",
    coverage=(
        "Security groups; a row for each rule that is open. Routes, network ACLs and firewalls are "
        "not looked at, nor are rules for networks narrower than an IPv4 /7 or an IPv6 /12."
    ),
    controls=GROUP_CONTROLS,
    description=(
        "Inbound rules open to the Internet. Narrow each to those who need it, or remove it."
    ),
    docs="https://docs.aws.amazon.com/vpc/latest/userguide/security-group-rules.html",
    console_links={"Group ID": "ec2/home?region={Region}#SecurityGroup:groupId={Group ID}"},
    empty_message="No rule open to the Internet in {evaluated:,} groups in {targets:,} regions",
)
def check_security_groups(aws: Account, region: str) -> Rows:
    """Finds inbound rules that are open to the whole Internet, or to a large part of it.

    A rule of a group that no interface has is one severity lower; a rule behind VPC block public
    access, or of another account, is Low. Interfaces or a block that cannot be read lower nothing,
    and make a row NOT CHECKED.
    """
    groups, own, rules = 0, 0, list[OpenRule]()
    try:
        for group in aws.fetch("ec2", "DescribeSecurityGroups", "SecurityGroups", region):
            groups, own = groups + 1, own + (owner_of(aws, group) == aws.number)
            rules += open_rules(aws, region, group)
    except AwsCallFailed as failed:
        for rule in rules:
            yield from rule_rows(aws, region, rule, Usage(failed.error, failed.error))
        raise
    open_groups = (one.group for one in rules if one.exposure.versions)
    ours = {one["GroupId"] for one in open_groups if owner_of(aws, one) == aws.number}
    usage = read_usage(aws, region, ours)
    for rule in rules:
        yield from rule_rows(aws, region, rule, usage)
    for name, answer in usage._asdict().items():
        if isinstance(answer, AwsError):
            yield not_checked_row(region, name, {"Region": region}, answer)
    return Counter({"": groups, **dict.fromkeys(GROUP_CONTROLS, own)})


def rule_rows(aws: Account, region: str, rule: OpenRule, usage: Usage) -> Iterator[Row]:
    """The rows of a rule: a finding if it is open, and NOT CHECKED if a prefix list is unread."""
    group, ports, id = rule.group, rule.ports, rule.group["GroupId"]
    item = f"{id}/{ports.protocol}/{ports.numbers().replace(' ', '-')}"
    cells: dict[str, Cell] = {
        "Region": region, "Group ID": id, "Group name": group.get("GroupName", ""),
        "VPC": group.get("VpcId", ""), "Protocol": ports.protocol, "Ports": ports.cell(),
    }  # fmt: skip
    row = Row(region, item, cells, resource=f"{region}/{id}")
    foreign = owner_of(aws, group) != aws.number
    failed = [] if foreign else failed_group_controls(ports, rule.sources.all_cidrs())
    for error in [*rule.sources.unread.values()][:1]:
        possible = [] if foreign else failed_group_controls(ports, WHOLE_INTERNET.values())
        undecided = (ControlFinding(one, "", NOT_CHECKED) for one in possible if one not in failed)
        unread = cells | {"Open to": ", ".join(rule.sources.unread)}
        yield replace(row, cells=unread, error=error, control_findings=tuple(undecided))
    if rule.exposure.versions:
        row = replace(
            row,
            cells=cells | {"Open to": open_to(rule)},
            control_findings=tuple(ControlFinding(one, id) for one in failed),
            extent=frozenset(rule.exposure.open_to),
            kind=f"{rule.reached.service()} open to {rule.exposure.text}",
        )
        yield foreign_rule_row(aws, row, rule) if foreign else open_rule_row(aws, row, rule, usage)


def open_rule_row(aws: Account, row: Row, rule: OpenRule, usage: Usage) -> Row:
    """The row as the finding of an own open rule; at most Medium for a part of the Internet."""
    used = usage_of(rule.group, usage)
    severity = port_severity(rule.reached) if rule.exposure.whole else MEDIUM
    severity = one_level_lower(severity) if used.unused else severity
    blocked = used.blocked_by not in ("", NOT_CHECKED)
    # public addresses raise the priority most, then any use, then the whole Internet
    use = 0 if used.unused or blocked else 1 + used.public
    commands = (cli_command(aws, row.target, *words) for words in revoke_commands(rule))
    return replace(
        row,
        cells=row.cells | {"Used by": used.used_by, "Blocked by": used.blocked_by},
        message=describe_rule(rule, used.text),
        severity=LOW if blocked else severity,
        remediation=shell_line("; ".join(commands)),
        extent=row.extent | ({"public address"} if used.public else set()),
        fully_read=NOT_CHECKED not in (used.used_by, used.blocked_by),
        priority=2 * use + rule.exposure.whole,
        facts=rule_facts(rule, usage),
    )


def rule_facts(rule: OpenRule, usage: Usage) -> dict[str, Fact]:
    """The ports of a rule for programs, and how many interfaces use its group, if known."""
    facts: dict[str, Fact] = {"from_port": rule.ports.first, "to_port": rule.ports.last}
    if isinstance(usage.interfaces, AwsError):
        return facts
    found = usage.interfaces[rule.group["GroupId"]]
    return facts | {"interfaces": len(found), "public_interfaces": sum(map(is_public, found))}


def foreign_rule_row(aws: Account, row: Row, rule: OpenRule) -> Row:
    """The row as the finding that a rule in another account's group is open: always Low."""
    owner = owner_of(aws, rule.group)
    message = describe_rule(rule, f"; account {owner} owns the group")
    fix = Remediation(manual=f"account {owner} must close it")
    arn = f"arn:{aws.partition}:ec2:{row.target}:{owner}:security-group/{rule.group['GroupId']}"
    kind = f"{row.kind}, by another account"
    return replace(row, message=message, severity=LOW, remediation=fix, kind=kind, arn=arn)


def open_to(rule: OpenRule) -> str:
    """The text of the column Open to: the open CIDRs, then prefix lists that the exposure needs."""
    lists = ", ".join(lists_in(rule))
    return ", ".join(rule.exposure.open_to) + (f" ({lists})" if lists else "")


def describe_rule(rule: OpenRule, usage: str) -> Message:
    """The sentence about an open rule: how much of the Internet reaches which ports."""
    lists, others = ", ".join(lists_in(rule)), in_words(one.service() for one in rule.partners)
    before = f"lets {rule.exposure.text}{f' through {lists}' if lists else ''} reach "
    together = f", together with its rule for {others}" if others else ""
    return Message(before, rule.reached.service(), f"{together}{usage}")


def one_level_lower(severity: str) -> str:
    """The next lower severity; Low stays Low."""
    return SEVERITIES[min(SEVERITIES.index(severity) + 1, 3)]


# --- check 3: access keys -------------------------------------------------------------

DUE_SOON = timedelta(days=31)  # a key due within this time is due before the next monthly run
KEY_AGE_REQUIREMENT = "No active access key was created more than 90 days ago"
KEY_CONTROLS = {
    # Security Hub counts a key's age from its creation or last activation, as the credential
    # report does; we count from the creation, which no reactivation changes.
    "IAM.3": Control(MEDIUM, KEY_AGE_REQUIREMENT, "1.13", "1.14", "8.3.9, 8.6.3"),
    "IAM.4": Control(CRITICAL, "Root has no access key", "1.3", "1.4", scope=ROOT),
}


@once
def account_summary(aws: Account) -> dict[str, int]:
    """The numbers of GetAccountSummary; some tell whether root has MFA, a password and keys."""
    return aws.ask("iam", "GetAccountSummary")["SummaryMap"]  # type: ignore[no-any-return]


def key_age(created: datetime, now: datetime) -> int:
    """The age of an access key in whole days since it was created."""
    return (now - created).days


def due_day(created: datetime, max_age: int) -> datetime:
    """The first moment at which a key is older than `max_age` days."""
    return created + timedelta(days=max_age + 1)


@once
def access_keys(aws: Account, user: str) -> list[dict[str, Any]]:
    """The access keys of a user as ListAccessKeys describes them."""
    return list(aws.fetch("iam", "ListAccessKeys", "AccessKeyMetadata", UserName=user))


@check(
    "Access keys",
    targets=USER_TARGETS,
    prefetch=(users_by_name, account_summary, for_each(access_keys, users_by_name)),
    uses_key_age=True,
    threads=IAM_THREADS,
    columns=("User", "Access key ID", "Key status", "Created", "Age (days)", "Last used"),
    name_columns=("User", "Access key ID"),
    row_noun="key",
    coverage=(
        "Access keys of IAM users, active or not, and whether root has any. Keys of roles, and "
        "credentials for a single service, are not looked at."
    ),
    controls=KEY_CONTROLS,
    description="Every access key and its age. Replace an old key, then delete it.",
    docs="https://docs.aws.amazon.com/IAM/latest/UserGuide/id-credentials-access-keys-update.html",
    console_links={"User": "iam/home#/users/details/{User}?section=security_credentials"},
    empty_message="No access key among {targets:,} users, root included",
)
def check_access_keys(aws: Account, user: str) -> Rows:
    """Checks whether a user's keys are too old (IAM.3), and whether root has keys (IAM.4).

    An inactive key that is too old is a finding too, but fails no control.
    """
    if user == ROOT:
        if account_summary(aws)["AccountAccessKeysPresent"]:
            yield root_key_row(aws)
        return Counter({"IAM.4": 1})
    keys = access_keys(aws, user)
    for key in keys:
        yield from key_rows(aws, user, key)
    return Counter({"IAM.3": sum(key["Status"] == "Active" for key in keys)})


def root_key_row(aws: Account) -> Row:
    """The finding that root has access keys."""
    return Row(
        ROOT, "keys", {"User": ROOT}, Message("has access keys"), CRITICAL,
        remediation=root_remediation(aws), control_findings=(ControlFinding("IAM.4", ROOT),),
        kind="Root has access keys", priority=4,
    )  # fmt: skip


# Regions in which root neither signs in nor has MFA:
# https://docs.aws.amazon.com/govcloud-us/latest/UserGuide/govcloud-account-root-user.html
# https://docs.amazonaws.cn/en_us/aws/latest/userguide/iam.html
WITHOUT_ROOT = ("us-gov-", "cn-")


def root_remediation(aws: Account) -> Remediation:
    """The remediation for root: sign in as root; in GovCloud and China, AWS Support must act."""
    support = aws.home_region.startswith(WITHOUT_ROOT)
    return Remediation(manual="have AWS Support delete its keys" if support else "sign in as root")


def key_rows(aws: Account, user: str, key: dict[str, Any]) -> Iterator[Row]:
    """The rows of a key: OK or too old, and NOT CHECKED if an old key's last use is unread."""
    id, created, active = key["AccessKeyId"], key["CreateDate"], key["Status"] == "Active"
    age = key_age(created, aws.now)
    cells: dict[str, Cell] = {
        "User": user, "Access key ID": id, "Key status": key["Status"],
        "Created": created, "Age (days)": age, "Last used": "",
    }  # fmt: skip
    # IAM.3 is about 90 days; it is undecided for keys that a longer --max-key-age lets pass
    status = FAILED if age > aws.max_key_age else NOT_CHECKED
    findings = (ControlFinding("IAM.3", id, status),) if active and age > MAX_KEY_AGE else ()
    row = Row(user, id, cells, control_findings=findings, resource=id)
    if age <= aws.max_key_age:
        due = due_day(created, aws.max_key_age)
        soon = f", due {due:%Y-%m-%d}" if due - aws.now <= DUE_SOON else ""
        yield replace(row, message=Message(f"Key is rotated{soon}"))
        return
    used = answer_or_error(aws.ask, "iam", "GetAccessKeyLastUsed", AccessKeyId=id)
    if not isinstance(used, AwsError):
        yield old_key_row(aws, row, active, used["AccessKeyLastUsed"].get("LastUsedDate", "never"))
    elif used.code not in GONE_CODES:
        yield old_key_row(aws, row, active, NOT_CHECKED)
        yield replace(row, error=used, control_findings=())


def old_key_row(aws: Account, row: Row, active: bool, last: Cell) -> Row:
    """The row as the finding that a key is too old; `last` is a date, never or NOT CHECKED."""
    age, what = row.cells["Age (days)"], "key" if active else "inactive key"
    used = f"was used on {last:%Y-%m-%d}" if isinstance(last, datetime) else f"was {last} used"
    used = "its last use is NOT CHECKED" if last == NOT_CHECKED else used
    fix = deactivate_key(aws, row.target, row.item) if active else None
    return replace(
        row,
        cells=row.cells | {"Last used": last},
        message=Message(f"{what} is {age:,} days old and {used}"),
        severity=MEDIUM if active else LOW,
        remediation=fix or Remediation(manual="already inactive"),
        kind=f"{'Access' if active else 'Inactive access'} key older than {aws.max_key_age} days",
        priority=0 if last == "never" else 1,
        facts={"age_days": int(str(age)), "active": active},
    )


def deactivate_key(aws: Account, user: str, id: str) -> Remediation:
    """The command that makes an access key inactive, which can be undone."""
    key = ("--access-key-id", id, "--status", "Inactive")
    return aws_cli(aws, "", "iam", "update-access-key", *cli_option("user-name", user), *key)


# --- check 4: MFA ---------------------------------------------------------------------

# Tries to get the credential report, and seconds between them: with many users it takes a while.
REPORT_POLLS, REPORT_PAUSE = 30, 2
MFA_CONTROLS = {
    "IAM.5": Control(MEDIUM, "Who has a console password has MFA", "1.9", "1.10", "8.4.2"),
    "IAM.9": Control(CRITICAL, "Root has MFA", "1.4", "1.5", "8.4.2", ROOT),
    "IAM.19": Control(MEDIUM, "Every user has MFA", pci="8.4.2"),
}


@once
def credential_report(aws: Account) -> tuple[bool, dict[str, dict[str, str]]]:
    """Whether AWS made the credential report for this run, and its rows by user.

    There are no rows if the report cannot be read: then IAM is asked about each user. AWS makes
    a new report only if the last one is older than four hours:
    https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_getting-report.html
    """
    not_ready = ("ReportInProgress", "ReportNotPresent", "ReportExpired")
    with contextlib.suppress(AwsCallFailed):
        fresh = aws.ask("iam", "GenerateCredentialReport")["State"] == "STARTED"
        for _ in range(REPORT_POLLS):
            if response := aws.ask("iam", "GetCredentialReport", absent=not_ready):
                text = response["Content"].decode()
                return fresh, {row["user"]: row for row in csv.DictReader(io.StringIO(text))}
            time.sleep(REPORT_PAUSE)
    return False, {}


@once
def virtual_mfa_user_arns(aws: Account) -> set[str]:
    """The ARNs of the users who have a virtual MFA device now."""
    operation, items = "ListVirtualMFADevices", "VirtualMFADevices"
    devices = aws.fetch("iam", operation, items, AssignmentStatus="Assigned")
    return {device["User"]["Arn"] for device in devices if device.get("User")}


def has_mfa(aws: Account, user: str) -> bool:
    """Whether a user has an MFA device, by a fresh credential report or else by IAM itself.

    An older report is not used: a user may have got a device since.
    """
    fresh, report = credential_report(aws)
    if fresh and user in report:
        return report[user]["mfa_active"].lower() == "true"
    if users_by_name(aws).get(user, {}).get("Arn") in virtual_mfa_user_arns(aws):
        return True
    return any(aws.fetch("iam", "ListMFADevices", "MFADevices", UserName=user))


def has_password(aws: Account, user: str, mfa: bool) -> bool:
    """Whether a user has a console password; with MFA, an old credential report will do.

    The password of a user with MFA decides nothing. Of others a fresh report or IAM tells it.
    """
    fresh, report = credential_report(aws)
    if user in report and (fresh or mfa):
        return report[user]["password_enabled"].lower() == "true"
    return bool(aws.ask("iam", "GetLoginProfile", UserName=user, absent={"NoSuchEntity"}))


def report_date(text: str) -> Cell:
    """A date of the credential report as a datetime; blank for text such as N/A."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text[:1].isdigit() else ""


def describe_sign_in(password: bool | None, last: Cell) -> str:
    """The words on how a user without MFA signs in; `password` is None if it is not known."""
    if password is None:
        return "has no MFA device"
    if not password:
        return "has no MFA device, and no console password"
    if isinstance(last, datetime):
        return f"signs in with a password alone, last on {last:%Y-%m-%d}"
    return f"can sign in with a password alone{', but never did' if last else ''}"


@check(
    "MFA",
    targets=USER_TARGETS,
    prefetch=(users_by_name, account_summary, credential_report),
    threads=IAM_THREADS,
    columns=("User", "Console password", "Last sign-in", "MFA"),
    row_noun="user",
    coverage=(
        "IAM users and root. People who sign in through IAM Identity Center or another identity "
        "provider are not looked at, nor are conditions on MFA in policies."
    ),
    controls=MFA_CONTROLS,
    description="Who signs in with a password alone. Give every user, and root, an MFA device.",
    docs="https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_mfa.html",
    console_links={"User": "iam/home#/users/details/{User}?section=security_credentials"},
    empty_message="No user",
)
def check_mfa(aws: Account, user: str) -> Rows:
    """Checks the MFA of root (IAM.9), users with a password (IAM.5) and all users (IAM.19)."""
    if user == ROOT:
        yield root_mfa_row(aws)
        return Counter({"IAM.9": 1})
    mfa = has_mfa(aws, user)
    password = answer_or_error(has_password, aws, user, mfa)
    yield user_mfa_row(aws, user, mfa, None if isinstance(password, AwsError) else password)
    if isinstance(password, AwsError):
        undecided = () if mfa else (ControlFinding("IAM.5", user, NOT_CHECKED),)
        yield Row(user, "password", {"User": user}, error=password, control_findings=undecided)
    return Counter(("IAM.5", "IAM.19") if password is True else ("IAM.19",))


def user_mfa_row(aws: Account, user: str, mfa: bool, password: bool | None) -> Row:
    """The row of an IAM user, by MFA alone: OK or Medium; `password` is None if unread."""
    about = users_by_name(aws).get(user, {})
    last = about.get("PasswordLastUsed", "never" if password else "")
    # UserId is the ID of the user, which a renaming does not change
    row = replace(mfa_row(user, password, last, mfa), resource=about.get("UserId", ""))
    fix = Remediation(manual="its owner must enrol a device")
    return row if mfa else replace(row, severity=MEDIUM, remediation=fix)


def root_mfa_row(aws: Account) -> Row:
    """The row of root: OK with any MFA, or without any credentials; else a Critical finding.

    An organization can remove the password and the keys of its members' root users.
    """
    summary = account_summary(aws)
    mfa = bool(summary["AccountMFAEnabled"])
    signs_in = not aws.home_region.startswith(WITHOUT_ROOT)
    password = bool(summary.get("AccountPasswordPresent", 1)) and signs_in
    _, report = credential_report(aws)
    last = report_date(report.get(ROOT, {}).get("password_last_used", ""))
    row = mfa_row(ROOT, password, last, mfa)
    if mfa:
        return row
    if not password and not summary["AccountAccessKeysPresent"]:
        return Row(ROOT, "", row.cells, Message("Root has no credentials"))
    return replace(row, severity=CRITICAL, remediation=root_remediation(aws))


def mfa_row(user: str, password: bool | None, last: Cell, mfa: bool) -> Row:
    """The row of a user or root without severity; without MFA it names the controls that fail."""
    known = password is not None
    cells: dict[str, Cell] = {
        "User": user, "Console password": yes_no(password) if known else NOT_CHECKED,
        "Last sign-in": last, "MFA": yes_no(mfa),
    }  # fmt: skip
    facts: dict[str, Fact] = {"console_password": password, "mfa": mfa}
    row = Row(user, "", cells, Message("Enabled"), fully_read=known, facts=facts)
    if mfa:
        return row
    controls = ("IAM.9",) if user == ROOT else ("IAM.5", "IAM.19") if password else ("IAM.19",)
    who, has = "Root" if user == ROOT else "User", "with" if password else "without"
    return replace(
        row,
        message=Message(describe_sign_in(password, last)),
        control_findings=tuple(ControlFinding(control, user) for control in controls),
        extent=frozenset({"password"} if password else ()),
        kind=f"{who} {has} a console password, and without MFA",
        priority=3 if password else 0,
    )


# --- check 5: CloudTrail, event selectors ---------------------------------------------

READ, WRITE = "read", "write"  # the kinds of management events
READ_WRITE_TYPES = {"All": {READ, WRITE}, "ReadOnly": {READ}, "WriteOnly": {WRITE}}
DEFAULT_SELECTORS = {"EventSelectors": [{"ReadWriteType": "All", "IncludeManagementEvents": True}]}

# The kinds of management events (READ, WRITE) that a trail or selector records, and the event
# sources that it leaves out.
Recording = tuple[set[str], set[str]]
EVERYTHING: Recording = ({READ, WRITE}, set())


def advanced_selector_events(selector: dict[str, Any]) -> Recording:
    """The management events that an advanced selector records; none if a condition is unknown."""
    events, left_out, management = {READ, WRITE}, set(), False
    for part in selector["FieldSelectors"]:
        conditions = {name: value for name, value in part.items() if name != "Field" and value}
        name, values = part["Field"], conditions.get("Equals")
        if name == "eventCategory":
            management = conditions == {"Equals": ["Management"]}
        elif name == "readOnly" and [*conditions] == ["Equals"] and values in (["true"], ["false"]):
            events = {READ} if values == ["true"] else {WRITE}
        elif name == "eventSource" and [*conditions] == ["NotEquals"]:
            left_out = set(conditions["NotEquals"])
        else:
            return set(), set()
    return (events, left_out) if management else (set(), set())


def selector_recordings(selectors: dict[str, Any]) -> list[Recording]:
    """The recording of each event selector: empty for an advanced one without management events."""
    if advanced := selectors.get("AdvancedEventSelectors"):
        return [*map(advanced_selector_events, advanced)]
    excluded = "ExcludeManagementEventSources"
    return [
        (READ_WRITE_TYPES[one["ReadWriteType"]], {*(one.get(excluded) or ())})
        for one in selectors["EventSelectors"]
        if one["IncludeManagementEvents"]
    ]


def recorded_together(recordings: Iterable[Recording]) -> Recording:
    """The recording of selectors or trails together: one may record what the others miss.

    https://docs.aws.amazon.com/awscloudtrail/latest/userguide/logging-management-events-with-cloudtrail.html
    """
    found = [*recordings]
    recorded = {event for events, _ in found for event in events}
    missed = [[left_out for events, left_out in found if one in events] for one in recorded]
    return recorded, set().union(*(set.intersection(*left_out) for left_out in missed))


def describe_recording(recording: Recording) -> str:
    """The text of the column Management events, such as `read only`.

    >>> describe_recording(({READ, WRITE}, {"kms.amazonaws.com"}))
    'read and write without kms.amazonaws.com'
    """
    events, left_out = recording
    text = ("none", f"{min(events, default='')} only", "read and write")[len(events)]
    return f"{text} without {in_words(sorted(left_out))}" if left_out else text


# --- check 5: CloudTrail, trails ------------------------------------------------------

ACCOUNT_TARGET = "<account>"  # the target that stands for the account as a whole
# A trail of one region gets the events of global services only in the partition's leading region:
# https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-concepts.html
LEADING_REGIONS = {"us-east-1", "us-gov-west-1", "cn-north-1"}
GLOBAL_SERVICES = "global services"  # stands for the event sources of all global services
MULTI_REGION_REQUIREMENT = "One multi-region trail records all management events"
TRAIL_CONTROLS = {
    "CloudTrail.1": Control(HIGH, MULTI_REGION_REQUIREMENT, "3.1", "3.1", scope=ACCOUNT_TARGET),
    "CloudTrail.4": Control(LOW, "Log files of every trail are validated", "3.2", "3.2", "10.3.2"),
}


@dataclass(frozen=True)
class Trail:
    """A trail as DescribeTrails describes it, and what its other two responses say."""

    description: dict[str, Any]
    recordings: tuple[Recording, ...]  # what each event selector records; EVERYTHING if unread
    logging: bool | None  # whether the trail is on; None if its status was not read
    delivery_error: str = ""  # why log files are not delivered; blank if they are
    digest_error: str = ""  # why digest files (they validate log files) are not delivered
    error: AwsError | None = None  # why a part of the trail was not read

    @property
    def arn(self) -> str:
        """The ARN of the trail, by which every call names it."""
        return str(self.description["TrailARN"])

    @property
    def home(self) -> str:
        """The trail's home region, in which alone it can be changed."""
        return str(self.description["HomeRegion"])

    @property
    def owner(self) -> str:
        """The number of the account that owns the trail."""
        return self.arn.split(":")[4]

    @property
    def records(self) -> Recording:
        """The recording of all selectors of the trail together."""
        return recorded_together(self.recordings)

    def problems(self) -> list[str]:
        """The reasons why the trail records nothing: logging is stopped, or delivery fails."""
        stopped = ["logging stopped"] if self.logging is False else []
        return stopped + ([f"no delivery ({self.delivery_error})"] if self.delivery_error else [])

    def certain_recordings(self) -> Sequence[Recording]:
        """The recordings of the trail, if it works and everything of it was read; else none."""
        return () if self.problems() or self.error else self.recordings

    def possible_recordings(self) -> Sequence[Recording]:
        """The trail's recordings, none if it surely fails; unread selectors count as EVERYTHING."""
        return () if self.problems() else self.recordings

    def validates(self) -> bool:
        """Whether log file validation is on, so that changed log files would be noticed."""
        return bool(self.description.get("LogFileValidationEnabled"))

    def rank(self) -> tuple[bool, bool, int, bool]:
        """The sort key: trails that surely record come first, and then those that record all."""
        uncertain, incomplete = not self.certain_recordings(), self.records != EVERYTHING
        return uncertain, incomplete, len(self.problems()), not self.validates()


@once
def trails_of(aws: Account, region: str) -> list[dict[str, Any]]:
    """The descriptions of all trails that cover a region, also of other regions and accounts."""
    response = aws.ask("cloudtrail", "DescribeTrails", region, includeShadowTrails=True)
    return list(response["trailList"])


@once
def status_and_selectors(
    aws: Account, arn: str, home: str, custom: bool
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, AwsError | None]:
    """A trail's status and selectors, None where one could not be read, and the error.

    They are asked in the trail's home region. Without custom selectors, the default ones are
    given, not asked: a member account may not ask for those of its organization's trail.
    """
    status = None
    try:
        status = aws.ask("cloudtrail", "GetTrailStatus", home, Name=arn)
        if not custom:
            return status, DEFAULT_SELECTORS, None
        return status, aws.ask("cloudtrail", "GetEventSelectors", home, TrailName=arn), None
    except AwsCallFailed as failed:
        return status, None, failed.error


def load_trail(aws: Account, description: dict[str, Any]) -> Trail:
    """The trail of a description, with its status and selectors as far as these can be read."""
    arn, home = description["TrailARN"], description["HomeRegion"]
    custom = description.get("HasCustomEventSelectors", True)
    return evaluate_trail(description, *status_and_selectors(aws, arn, home, custom))


def evaluate_trail(
    description: dict[str, Any],
    status: dict[str, Any] | None,
    selectors: dict[str, Any] | None,
    error: AwsError | None = None,
) -> Trail:
    """The trail from its three responses; unread selectors are taken to record everything."""
    found = selector_recordings(selectors) if selectors is not None else [EVERYTHING]
    leads = description["HomeRegion"] in LEADING_REGIONS
    if leads and not description.get("IncludeGlobalServiceEvents", True):
        found = [(events, left_out | {GLOBAL_SERVICES}) for events, left_out in found]
    if status is None:
        return Trail(description, tuple(found), None, error=error)
    delivery = status.get("LatestDeliveryError", "")
    digests = status.get("LatestDigestDeliveryError", "")
    return Trail(description, tuple(found), bool(status["IsLogging"]), delivery, digests, error)


def multi_region_trails(aws: Account, names: Iterable[str]) -> list[Trail]:
    """The multi-region trails that the named regions show; raises if no region could be read."""
    answers = [answer_or_error(trails_of, aws, name) for name in names]
    read = [answer for answer in answers if not isinstance(answer, AwsError)]
    errors = [answer for answer in answers if isinstance(answer, AwsError)]
    if errors and not read:
        raise AwsCallFailed(errors[0])
    trails = {one["TrailARN"]: one for found in read for one in found if one["IsMultiRegionTrail"]}
    return [load_trail(aws, one) for one in trails.values()]


# --- check 5: CloudTrail --------------------------------------------------------------


def account_and_regions(aws: Account) -> Iterator[str]:
    """The targets: first the account as a whole, then each region that is to be checked."""
    yield ACCOUNT_TARGET
    yield from regions(aws)


@check(
    "CloudTrail",
    targets=TargetKind("targets", account_and_regions, regional=True),
    prefetch=(for_each(trails_of, regions),),
    columns=(
        *("Region", "Trail", "Home region", "Multi-region", "Logging"),
        *("Management events", "Log file validation"),
    ),
    name_columns=("Trail", "Home region"),
    coverage=(
        "Regions, the trails of the account, and the account itself. Data events, CloudTrail Lake, "
        "and who may read or delete the logs are not looked at."
    ),
    controls=TRAIL_CONTROLS,
    description=(
        "Whether each region's API calls are recorded. One multi-region trail covers them all."
    ),
    docs="https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-multi-region-trails.html",
    console_links={"Trail": "cloudtrailv2/home?region={Home region}#/trails"},
    empty_message="No region",
)
def check_cloudtrail(aws: Account, target: str) -> Rows:
    """The account's row if it fails CloudTrail.1; or a region's row and its flawed trails' rows.

    A trail whose log files are not validated fails CloudTrail.4. A region that does not show its
    trails is OK if others show multi-region trails that record all, but its own trails are NOT
    CHECKED.
    """
    if target == ACCOUNT_TARGET:
        yield from account_rows(aws)
        return Counter({"CloudTrail.1": 1})
    try:
        found = [load_trail(aws, one) for one in trails_of(aws, target)]
    except AwsCallFailed:
        others = (name for name in regions(aws) if name != target)
        row = region_row(aws, target, multi_region_trails(aws, others))
        if row.status == OK:
            yield row
        raise  # the region's own trails are not known, so CloudTrail.4 is undecided
    yield (row := region_row(aws, target, found))
    own = [one for one in found if one.home == target and one.owner == aws.number]
    yield from (trail_row(aws, one) for one in own if trail_flaws(one))
    for trail in () if row.error else own:  # a region NOT CHECKED needs no rows for unread trails
        if trail.logging is None and trail.error:
            yield unread_trail_row(trail, trail.error)
    return Counter({"": 1, "CloudTrail.4": len(own)})


def trail_cells(region: str, trails: Sequence[Trail]) -> dict[str, Cell]:
    """The cells of a row about trails that record together, about one trail, or about none."""
    cells: dict[str, Cell] = {"Region": region}
    if not trails:
        return cells
    unread = any(trail.logging is None for trail in trails)
    records = recorded_together(one for trail in trails for one in trail.recordings)
    events = NOT_CHECKED if any(trail.error for trail in trails) else describe_recording(records)
    return cells | {
        "Trail": ", ".join(trail.description["Name"] for trail in trails),
        "Home region": ", ".join(dict.fromkeys(trail.home for trail in trails)),
        "Multi-region": yes_no(all(trail.description["IsMultiRegionTrail"] for trail in trails)),
        "Logging": NOT_CHECKED if unread else yes_no(all(trail.logging for trail in trails)),
        "Management events": events,
        "Log file validation": yes_no(all(trail.validates() for trail in trails)),
    }


# --- check 5: CloudTrail, the account -------------------------------------------------


def fulfils_cloudtrail_1(trail: Trail) -> bool | AwsError:
    """Whether a multi-region trail is on and records all management events; an error if unknown.

    The rule behind the control (multi-region-cloudtrail-enabled) wants nothing left out, and does
    not look at the delivery of log files.
    """
    if trail.logging is False or trail.records != EVERYTHING:
        return False
    return trail.error or True


def account_rows(aws: Account) -> Iterator[Row]:
    """A finding if no multi-region trail records everything, else no row; raises if not known."""
    trails = multi_region_trails(aws, regions(aws))
    answers = [fulfils_cloudtrail_1(trail) for trail in trails]
    if True in answers:
        return
    for answer in answers:
        if isinstance(answer, AwsError):
            raise AwsCallFailed(answer)
    why = f": {in_words(map(describe_trail, trails))}" if trails else ""
    sentence = "the account has no multi-region trail that records all management events"
    yield Row(
        ACCOUNT_TARGET, "", {"Region": ACCOUNT_TARGET}, Message(sentence, after=why), HIGH,
        remediation=Remediation(manual="create a multi-region trail, or complete one by hand"),
        control_findings=(ControlFinding("CloudTrail.1", aws.number),),
        kind="No multi-region trail records all management events", priority=2,
    )  # fmt: skip


def describe_trail(trail: Trail) -> str:
    """Why a trail does not record everything: `main is stopped` or `main records read only`."""
    stopped, records = trail.logging is False, f"records {describe_recording(trail.records)}"
    return f"{trail.description['Name']} {'is stopped' if stopped else records}"


# --- check 5: CloudTrail, a region ----------------------------------------------------


def region_row(aws: Account, region: str, found: Sequence[Trail]) -> Row:
    """The row of a region: whether the trails that cover it record its API calls together."""
    certain = recorded_together(one for trail in found for one in trail.certain_recordings())
    possible = recorded_together(one for trail in found for one in trail.possible_recordings())
    if certain not in (EVERYTHING, possible):
        return unread_region_row(aws, region, found)
    shown, (events, left_out) = shown_trails(found, certain), certain
    arn = shown[0].arn if shown and shown[0].owner == aws.number else ""
    row = Row(region, "", trail_cells(region, shown), arn=arn)
    if events != {READ, WRITE}:
        message, fix = describe_region(region, shown, certain), start_trail(aws, found)
        problems = {one for trail in shown for one in trail.problems()}
        extent = frozenset({describe_recording(certain), *problems})
        row = replace(row, message=message, severity=HIGH, remediation=fix, extent=extent)
        return replace(row, kind="A region's API calls are not recorded", priority=1)
    if left_out:
        message = Message("records ", region, f", but not {in_words(sorted(left_out))}")
        fix, extent = complete_trail(aws, shown, left_out), frozenset(left_out)
        row = replace(row, message=message, severity=LOW, remediation=fix, extent=extent)
        return replace(row, kind="The API calls of some services are not recorded")
    others = in_words(sorted({trail.owner for trail in shown} - {aws.number}))
    return replace(row, message=Message(f"Enabled by account {others}" if others else "Enabled"))


def unread_region_row(aws: Account, region: str, found: Sequence[Trail]) -> Row:
    """The row NOT CHECKED of a region, with the error of the best unread trail that may record."""
    may_record = (trail for trail in found if trail.error and not trail.problems())
    unread = min(may_record, key=Trail.rank)
    undecided = ControlFinding("CloudTrail.1", aws.number, NOT_CHECKED)
    cells = trail_cells(region, [unread])
    return Row(region, "", cells, error=unread.error, control_findings=(undecided,))


def shown_trails(found: Sequence[Trail], records: Recording) -> list[Trail]:
    """The trails to show: one recording as much as all, else all that surely do, else the best."""
    by_rank = sorted(found, key=Trail.rank)
    certain = [trail for trail in by_rank if trail.certain_recordings()]
    alone = [trail for trail in certain if trail.records == records]
    return alone[:1] or certain or by_rank[:1]


def describe_region(region: str, shown: Sequence[Trail], records: Recording) -> Message:
    """The sentence that says why the API calls of a region are not recorded, or not all."""
    if not shown:
        return Message("no trail records the API calls of ", region)
    if records[0]:
        return Message(f"records only the {min(records[0])} events of ", region)
    why = [*(one for trail in shown for one in trail.problems()), "no management events"]
    return Message("does not record the API calls of ", region, f": {why[0]}")


def start_trail(aws: Account, found: Sequence[Trail]) -> Remediation:
    """The command that starts this account's trail if it is only stopped, else a task by hand."""
    for trail in sorted(found, key=Trail.rank):
        complete = trail.records[0] == {READ, WRITE} and not trail.error
        if complete and trail.problems() == ["logging stopped"] and trail.owner == aws.number:
            return aws_cli(aws, trail.home, "cloudtrail", "start-logging", "--name", trail.arn)
    return trail_by_hand(aws, found)


def complete_trail(aws: Account, shown: Sequence[Trail], left_out: set[str]) -> Remediation:
    """The command to record global services, if only they are left out of this account's trail."""
    first = shown[0]
    if left_out != {GLOBAL_SERVICES} or first.owner != aws.number:
        return trail_by_hand(aws, shown)
    words = ("cloudtrail", "update-trail", "--name", first.arn, "--include-global-service-events")
    return aws_cli(aws, first.home, *words)


def trail_by_hand(aws: Account, trails: Sequence[Trail]) -> Remediation:
    """The task by hand: to change a trail, in the account that owns it, or to create one."""
    owners = {trail.owner for trail in trails}
    if owners and aws.number not in owners:
        return Remediation(manual=f"a trail of account {in_words(sorted(owners))}")
    return Remediation(manual="change the trail by hand" if trails else "create a trail")


# --- check 5: CloudTrail, a trail -----------------------------------------------------


def trail_flaws(trail: Trail) -> dict[str, str]:
    """The flaws of a trail, by name: log files not validated, logs or digests not delivered."""
    found = {
        "log-file-validation": "" if trail.validates() else "does not validate its log files",
        "delivery": trail.delivery_error and f"cannot deliver its logs ({trail.delivery_error})",
        "digests": trail.digest_error and f"cannot deliver its digests ({trail.digest_error})",
    }
    return {name: text for name, text in found.items() if text}


def trail_row(aws: Account, trail: Trail) -> Row:
    """The finding that a trail of this account has flaws."""
    flaws, arn, read = trail_flaws(trail), trail.arn, trail.logging is not None
    text, cells = in_words(flaws.values()), trail_cells(trail.home, [trail])
    row = Row(
        trail.home, trail.description["Name"], cells, Message("", text), LOW, fully_read=read,
        extent=frozenset(flaws), kind=f"A trail {text}", resource=arn, arn=arn,
    )  # fmt: skip
    if trail.validates():
        fix = Remediation(manual="mend its bucket, or the policy of the bucket")
        return replace(row, remediation=fix)
    words = ("update-trail", "--name", arn, "--enable-log-file-validation")
    fix = aws_cli(aws, trail.home, "cloudtrail", *words)
    return replace(row, remediation=fix, control_findings=(ControlFinding("CloudTrail.4", arn),))


def unread_trail_row(trail: Trail, error: AwsError) -> Row:
    """A row NOT CHECKED, because the trail may have flaws that only its status tells."""
    name, cells = trail.description["Name"], trail_cells(trail.home, [trail])
    row = not_checked_row(trail.home, name, cells, error)
    return replace(row, resource=trail.arn, arn=trail.arn)


# --- check 6: S3 ACLs, grants ---------------------------------------------------------

EVERYONE = "http://acs.amazonaws.com/groups/global/AllUsers"
ANY_AWS_ACCOUNT = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
LOG_DELIVERY = "http://acs.amazonaws.com/groups/s3/LogDelivery"
# The canonical users of CloudFront, in China and elsewhere:
# https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/AccessLogs.html
CLOUDFRONT_LOG_DELIVERY = {
    "c4c1ede66af53448b93c283ce9448c4ba468c9432aa01d700d3878632f77d2d0",
    "a52cb28745c0c06e84ec548334e44bfa7fc2a85c54af20cd59e4969344b7af56",
}
PUBLIC_GRANTEES = {
    EVERYONE: "everyone on the Internet",
    ANY_AWS_ACCOUNT: "anyone with an AWS account",
}
ACL_GROUPS = {  # names by URI: for a row's ID, and for the column Grantee
    EVERYONE: ("AllUsers", "Everyone (AllUsers)"),
    ANY_AWS_ACCOUNT: ("AuthenticatedUsers", "Any AWS account (AuthenticatedUsers)"),
    LOG_DELIVERY: ("LogDelivery", "S3 log delivery"),
}
# What a permission allows, and the controls that fail if it is granted to the public.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/acl-overview.html#permissions
# S3 calls an ACL public if it grants a public group "any permissions", also only on the ACL itself:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-control-block-public-access.html
PERMISSIONS = {
    "READ": ("list it", ("S3.2",)),
    "READ_ACP": ("read its ACL", ("S3.2",)),
    "WRITE": ("write to it", ("S3.3",)),
    "WRITE_ACP": ("change its ACL", ("S3.3",)),
    "FULL_CONTROL": ("have full control of it", ("S3.2", "S3.3")),
}
BUCKET_CONTROLS = {
    "S3.2": Control(CRITICAL, "No bucket may be read by the public"),
    "S3.3": Control(CRITICAL, "No bucket may be written by the public"),
    "S3.12": Control(MEDIUM, "No bucket's ACL lets in other users"),
}


def grantee_names(grantee: dict[str, Any], owner: str) -> tuple[str, str]:
    """The names of a grantee: for the ID of a row, and for the column Grantee."""
    if uri := grantee.get("URI"):
        return ACL_GROUPS.get(uri, (uri, uri))
    id = grantee.get("ID") or grantee.get("EmailAddress", "")
    if id == owner:
        return "Owner", "Owner"
    if id in CLOUDFRONT_LOG_DELIVERY:
        return id, "CloudFront log delivery"
    name = grantee.get("DisplayName")  # AWS no longer returns display names of grantees
    return id, f"{name} ({id})" if name else id


def failed_bucket_controls(grantee: dict[str, Any], owner: str, permission: str) -> list[str]:
    """The controls that a grant fails, the most severe first; public access blocks do not count.

    The owner, and AWS's own delivery of logs, fail none.
    """
    uri, id = grantee.get("URI"), grantee.get("ID")
    if uri == LOG_DELIVERY or id == owner or id in CLOUDFRONT_LOG_DELIVERY:
        return []
    public = PERMISSIONS.get(permission, ("", ("S3.2", "S3.3")))[1]
    return [*(public if uri in PUBLIC_GRANTEES else ()), "S3.12"]


# --- check 6: S3 ACLs, public access blocks -------------------------------------------

OTHER_BLOCK_SETTINGS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy")


@once
def public_access_block(aws: Account, bucket: str) -> dict[str, Any] | None:
    """A bucket's public access block, the account's if `bucket` is blank; None if there is none."""
    service, of = ("s3", {"Bucket": bucket}) if bucket else ("s3control", {"AccountId": aws.number})
    region, absent = bucket_regions(aws).get(bucket, ""), {"NoSuchPublicAccessBlockConfiguration"}
    response = aws.ask(service, "GetPublicAccessBlock", region, absent, **of)
    return response["PublicAccessBlockConfiguration"] if response else None


def blocked_by(aws: Account, bucket: str, setting: str) -> str:
    """The block with a setting on, such as `account public access block`; blank if none has.

    If one has it on, it does not matter whether the other can be read.
    """
    failure = None
    for level, name in (("account", ""), ("bucket", bucket)):
        try:
            block = public_access_block(aws, name)
            if block is not None and block[setting]:
                return f"{level} public access block"
        except AwsCallFailed as failed:
            failure = failed
    if failure:
        raise failure
    return ""


def remove_grant(aws: Account, bucket: str, uri: str, permission: str) -> Remediation:
    """The command that removes a group's grant from the ACL that the bucket has when it is run.

    S3 only replaces whole ACLs. If the present one cannot be read, nothing is replaced.
    """
    region, about = bucket_regions(aws)[bucket], ("--bucket", bucket)
    kept = f'Grants[?Grantee.URI!=`"{uri}"` || Permission!=`"{permission}"`]'
    query = ("--query", f"{{Owner:Owner,Grants:{kept}}}", "--output", "json")
    read = cli_command(aws, region, "s3api", "get-bucket-acl", *about, *query)
    write = cli_command(aws, region, "s3api", "put-bucket-acl", *about)
    return shell_line(f'{write} --access-control-policy "$({read})"')


def restrict_bucket(aws: Account, bucket: str) -> Remediation:
    """The command that only turns on RestrictPublicBuckets; a task by hand if there is no block.

    S3 only replaces all four settings. Without a block, a person has to do it: a command could
    not tell settings that somebody made meanwhile from settings that it may not read.
    """
    region, about = bucket_regions(aws)[bucket], ("--bucket", bucket)
    if public_access_block(aws, bucket) is None:
        return Remediation(manual="turn on Block Public Access of the bucket by hand")
    kept = ",".join(f"{name}:{name}" for name in OTHER_BLOCK_SETTINGS)
    settings = f"PublicAccessBlockConfiguration.{{{kept},RestrictPublicBuckets:`true`}}"
    query = ("--query", settings, "--output", "json")
    read = cli_command(aws, region, "s3api", "get-public-access-block", *about, *query)
    write = cli_command(aws, region, "s3api", "put-public-access-block", *about)
    return shell_line(f'{write} --public-access-block-configuration "$({read})"')


# --- check 6: S3 ACLs -----------------------------------------------------------------


@once
def bucket_acl(aws: Account, bucket: str) -> dict[str, Any]:
    """The response of GetBucketAcl, asked in the bucket's own region."""
    return aws.ask("s3", "GetBucketAcl", bucket_regions(aws)[bucket], Bucket=bucket)


@once
def policy_status(aws: Account, bucket: str) -> dict[str, Any]:
    """The response of GetBucketPolicyStatus; empty if the bucket has no policy."""
    region, absent = bucket_regions(aws)[bucket], {"NoSuchBucketPolicy"}
    return aws.ask("s3", "GetBucketPolicyStatus", region, absent, Bucket=bucket)


def prefetch_acl_and_policy(aws: Account, bucket: str) -> None:
    """Calls GetBucketAcl and GetBucketPolicyStatus ahead of the check, which finds them cached."""
    bucket_acl(aws, bucket)
    policy_status(aws, bucket)


@check(
    "S3 ACLs",
    targets=BUCKET_TARGETS,
    prefetch=(bucket_regions, for_each(prefetch_acl_and_policy, bucket_regions)),
    columns=("Bucket", "Region", "Owner", "Grantee", "Permission", "Blocked by"),
    name_columns=("Bucket", "Region"),
    row_noun="grant",
    arn="arn:{partition}:s3:::{Bucket}",
    coverage=(
        "Buckets; a row for each grant. ACLs of objects, access points, and directory, table and "
        "vector buckets are not looked at; of a policy only whether it makes the bucket public."
    ),
    controls=BUCKET_CONTROLS,
    description="Who is granted what on every bucket. Turn ACLs off, and block public access.",
    docs="https://docs.aws.amazon.com/AmazonS3/latest/userguide/about-object-ownership.html",
    console_links={"Bucket": "s3/buckets/{Bucket}?region={Region}"},
    empty_message="No grant on any of {targets:,} buckets",
)
def check_s3_acls(aws: Account, bucket: str) -> Rows:
    """The rows of a bucket: each grant (S3.2, S3.3, S3.12), and a policy that makes it public."""
    acl = answer_or_error(bucket_acl, aws, bucket)
    if isinstance(acl, AwsError):
        if acl.code == "AccessDenied":  # a policy may make a bucket public and deny GetBucketAcl
            with contextlib.suppress(AwsCallFailed):
                yield from policy_rows(aws, bucket)
        raise AwsCallFailed(acl)
    for grant in acl["Grants"]:
        yield from grant_rows(aws, bucket, grant)
    yield from policy_rows(aws, bucket)
    return Counter(["", *BUCKET_CONTROLS])


def grant_cells(aws: Account, bucket: str) -> dict[str, Cell]:
    """The cells that all rows of a bucket share; a blank Owner if the ACL was not read."""
    region, acl = bucket_regions(aws)[bucket], answer_or_error(bucket_acl, aws, bucket)
    owner = {} if isinstance(acl, AwsError) else acl["Owner"]
    name = owner.get("DisplayName") or owner.get("ID", "")
    return {"Bucket": bucket, "Region": region, "Owner": name, "Blocked by": ""}


def grant_rows(aws: Account, bucket: str, grant: dict[str, Any]) -> Iterator[Row]:
    """The rows of an ACL grant: OK if no control fails, else a finding, maybe also NOT CHECKED."""
    grantee, permission = grant["Grantee"], grant["Permission"]
    owner, uri = bucket_acl(aws, bucket)["Owner"]["ID"], grantee.get("URI", "")
    id, name = grantee_names(grantee, owner)
    cells = grant_cells(aws, bucket) | {"Grantee": name, "Permission": permission}
    failed = failed_bucket_controls(grantee, owner, permission)
    may = PERMISSIONS.get(permission, (f"{permission} on it", ()))[0]
    other = f"the group {name}" if "URI" in grantee else "another AWS account"
    message = Message(f"{PUBLIC_GRANTEES.get(uri, other)} may ", may)
    findings = tuple(ControlFinding(control, bucket) for control in failed)
    kind = f"Bucket: {''.join(message)}"
    row = Row(bucket, f"{id}/{permission}", cells, message, control_findings=findings, kind=kind)
    if not failed:
        yield replace(row, message=Message(f"{name} has {permission}"))
    elif uri in PUBLIC_GRANTEES:
        writes = "WRITE" in permission or permission == "FULL_CONTROL"
        row = replace(row, priority=5 if writes else 4)
        yield from public_grant_rows(aws, row, remove_grant(aws, bucket, uri, permission))
    else:
        ask = "remove the grant by hand" if uri else "ask the other account"
        yield replace(row, severity=MEDIUM, remediation=Remediation(manual=ask))


def public_grant_rows(aws: Account, row: Row, fix: Remediation) -> Iterator[Row]:
    """The finding of a public grant: Critical, or Low if a public access block makes it void.

    It fails S3.12 in any case; if the block cannot be read, a row NOT CHECKED has the rest.
    """
    blocked = answer_or_error(blocked_by, aws, row.target, "IgnorePublicAcls")
    only_grant = tuple(one for one in row.control_findings if one.control == "S3.12")
    in_any_case = replace(row, control_findings=only_grant, remediation=fix)
    if blocked == "":
        yield replace(row, severity=CRITICAL, remediation=fix)
    elif isinstance(blocked, AwsError):
        text = row.message._replace(after=", unless a public access block makes that void")
        cells = row.cells | {"Blocked by": NOT_CHECKED}
        yield replace(in_any_case, cells=cells, message=text, severity=MEDIUM, fully_read=False)
        public = (one for one in row.control_findings if one.control != "S3.12")
        undecided = tuple(one._replace(status=NOT_CHECKED) for one in public)
        yield replace(row, error=blocked, control_findings=undecided, message=Message(""))
    else:
        yield blocked_row(in_any_case, blocked)


def blocked_row(row: Row, blocked: str) -> Row:
    """The row of public access as a Low finding, because a public access block makes it void."""
    cells = row.cells | {"Blocked by": blocked}
    text = row.message._replace(after=f", but the {blocked} makes that void")
    return replace(row, cells=cells, message=text, severity=LOW)


def policy_rows(aws: Account, bucket: str) -> Iterator[Row]:
    """The row of a public policy; none if there is no policy, or none that is public."""
    status = policy_status(aws, bucket)
    if status and status["PolicyStatus"]["IsPublic"]:
        yield policy_row(aws, bucket)


def policy_row(aws: Account, bucket: str) -> Row:
    """The row of a public policy: Critical, Low if a public access block voids it, or NOT CHECKED.

    AWS does not say whether the policy lets the public read (S3.2) or write (S3.3).
    """
    who: dict[str, Cell] = {"Grantee": "Everyone (bucket policy)", "Permission": "policy"}
    cells = grant_cells(aws, bucket) | who
    message = Message(f"its policy lets in {PUBLIC_GRANTEES[EVERYONE]}")
    undecided = tuple(ControlFinding(name, bucket, NOT_CHECKED) for name in ("S3.2", "S3.3"))
    row = Row(
        bucket, "policy", cells, message, control_findings=undecided,
        kind=f"Bucket: {''.join(message)}", priority=4,
    )  # fmt: skip
    try:
        if blocked := blocked_by(aws, bucket, "RestrictPublicBuckets"):
            fix = Remediation(manual="void now: make the policy private by hand")
            return replace(blocked_row(row, blocked), remediation=fix, control_findings=())
        fix = restrict_bucket(aws, bucket)
    except AwsCallFailed as failed:
        return replace(row, error=failed.error, message=Message(""))
    after = "; RestrictPublicBuckets also shuts out a web site's visitors, and named accounts"
    message = message._replace(after=after)
    return replace(row, message=message, severity=CRITICAL, remediation=fix)


# === aws ==============================================================================

# Time-outs in seconds. A call is tried ATTEMPTS times when AWS throttles or fails, but only
# twice when nothing answers: a region that does not answer must not hold up the run.
CONNECT_TIMEOUT, READ_TIMEOUT = 5, 10
# Seconds after which no further attempt of a call is made (the pauses of the pace do not count),
# and the limit for a single attempt
CALL_TIMEOUT = 60
# Seconds to sign in, as somebody may type a code or open a browser; and to refresh credentials
# during the audit: less than CALL_TIMEOUT, after which the waiting call is given up.
SIGN_IN_TIMEOUT, REFRESH_TIMEOUT = 300, 45
ATTEMPTS = 8  # attempts of a call: about a minute with the waits of botocore's `standard` mode
# Attempts if a response is malformed or cut off, and the seconds to wait between two of them
MALFORMED_ATTEMPTS, MALFORMED_PAUSE = 3, 0.2
MAX_FAILURES = 3  # time-outs or throttlings in a row, then a call is not made again in a region
# Calls that are for another account or file each time: a failure says nothing of the next one
NEVER_GIVEN_UP = {"AssumeRole", "GetObject", "PutObject"}
CONNECTIONS = 32  # connections of a client: as many as a check has threads
CALLERS = 128  # threads of the pool for calls: of a check, of prefetching, and for slow calls

# A pace for a throttled client, in seconds between calls. AWS's limits for IAM and EC2 are
# about 20 calls a second. Slower by a fifth after each volley of refusals, faster by half a
# per cent after each answer, a run takes 1.1 to 1.2 times what the limit allows (measured).
INITIAL_DELAY, SLOWER, FASTER = 0.05, 1.2, 0.995
VOLLEY = 1  # seconds within which several refusals slow the pace down only once
# A client that is refused even at one call in two seconds is not refused for its pace: others
# use up the limits. It then goes on at half the limits, and relies on its attempts.
MAX_DELAY, SETTLED_DELAY = 2.0, 0.1

LIMITS_USED_UP = "(however slowly it is asked: others use up the account's limits)"
NOT_AWS = "(something other than AWS answered: a proxy, or a sign-in page)"

# Every role that we assume is held down to these permissions: a session can do what both its
# role and its session policy allow.
READ_ACTIONS = [
    *("cloudtrail:DescribeTrails", "cloudtrail:GetEventSelectors", "cloudtrail:GetTrailStatus"),
    *("ec2:DescribeInstances", "ec2:DescribeNetworkInterfaces", "ec2:DescribeRegions"),
    *("ec2:DescribeSecurityGroups", "ec2:DescribeVpcBlockPublicAccessExclusions"),
    *("ec2:DescribeVpcBlockPublicAccessOptions", "ec2:DescribeVpcs"),
    "ec2:GetManagedPrefixListEntries",
    *("iam:GenerateCredentialReport", "iam:GetAccessKeyLastUsed", "iam:GetAccountSummary"),
    *("iam:GetCredentialReport", "iam:GetLoginProfile", "iam:ListAccessKeys"),
    *("iam:ListAccountAliases", "iam:ListMFADevices", "iam:ListUsers", "iam:ListVirtualMFADevices"),
    *("s3:GetAccountPublicAccessBlock", "s3:GetBucketAcl", "s3:GetBucketPolicyStatus"),
    *("s3:GetBucketPublicAccessBlock", "s3:ListAllMyBuckets"),
]
READ_POLICY: dict[str, Any] = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": READ_ACTIONS, "Resource": "*"}],
}

IN_CALL = threading.local()  # IN_CALL.sent: times at which this thread sent attempts of a call
CLIENT_LOCK = threading.Lock()  # held while a client is made: accounts share what botocore has read
CALL_LOG = logging.getLogger("security_check")


class Call(NamedTuple):
    """A call to AWS, without its parameters."""

    service: str
    operation: str
    region: str

    def error(self, code: str, detail: str = "") -> AwsError:
        """An error of this call with a code, and with a detail if there is one."""
        return AwsError(code, self.service, self.operation, detail)


SIGN_IN = Call("sign-in", "", "")  # stands for all calls that botocore makes for credentials
CREDENTIALS = "credentials"  # the key in Account.failures for credentials that cannot be had
# EC2 says RequestExpired both of an expired token and of a wrong clock
RENEWABLE_CODES = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}


class Response(dict[str, Any]):
    """The response to a call, or a structure inside it.

    To read a missing field with [] raises AwsCallFailed: the response is not from AWS, but from a
    proxy or a login page.
    """

    def __init__(self, content: dict[str, Any], call: Call) -> None:
        super().__init__(content)
        self.call = call

    def __getitem__(self, name: str) -> Any:
        return self._wrap(super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        """The field, wrapped if it is a structure; the default if the field is missing."""
        return self._wrap(super().get(name, default))

    def _wrap(self, value: Any) -> Any:
        """The value, with each structure in it wrapped as a Response too."""
        if isinstance(value, list):
            return [*map(self._wrap, value)]
        return Response(value, self.call) if isinstance(value, dict) else value

    def __missing__(self, name: str) -> Any:
        raise AwsCallFailed(self.call.error("MalformedResponse", f"without {name}"))


# --- sessions -------------------------------------------------------------------------

READ_PREFIXES = ("AssumeRole", "Describe", "Generate", "Get", "Head", "List")
# allowed too, as botocore itself calls it before it reads or writes in a directory bucket of S3
READ_OPERATIONS = {"CreateSession"}


@functools.cache
def read_only_loader(data_path: str | None, writes: tuple[str, ...]) -> Any:
    """A loader of botocore whose descriptions of services lack all writes but those in `writes`.

    So our clients have no method that writes. Sessions with the same permitted writes share
    the loader: descriptions are read once for all accounts, because that is slow.
    """
    import botocore.loaders

    loader: Any = botocore.loaders.create_loader(data_path)
    load, kept = loader.load_service_model, {*READ_OPERATIONS, *writes}

    def load_reads(service_name: str, type_name: str, api_version: str | None = None) -> Any:
        """A description of a service; that of its operations lacks those that write."""
        model = load(service_name, type_name, api_version)
        if type_name != "service-2":
            return model
        calls = model["operations"]
        reads = [name for name in calls if name.startswith(READ_PREFIXES) or name in kept]
        return model | {"operations": {name: calls[name] for name in reads}}

    loader.load_service_model = functools.cache(load_reads)
    return loader


class RoleCache:
    """The credentials of the roles in profiles, where the AWS CLI keeps them too.

    So an MFA code is asked once, and not at all if the AWS CLI asked within the hour.
    """

    def __init__(self) -> None:
        from botocore.utils import JSONFileCache

        self.memory: dict[str, Any] = {}
        # Path.home() raises for a user without a home folder, as in some containers
        self.files = JSONFileCache(os.path.expanduser("~/.aws/cli/cache"))  # noqa: PTH111

    def __contains__(self, key: str) -> bool:
        """Whether a role's credentials are in memory, or could now be read from a file."""
        with contextlib.suppress(KeyError, TypeError):  # a damaged cache file counts as missing
            if key not in self.memory:
                found = self.files[key]
                for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"):
                    found["Credentials"][name]
                self.memory[key] = found
        return key in self.memory

    def __getitem__(self, key: str) -> Any:
        """The credentials of a role, which `in` has put into memory before."""
        return self.memory[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.memory[key] = value
        with contextlib.suppress(OSError, ValueError):  # the home folder may be write-protected
            self.files[key] = value


def client_config() -> Any:
    """The time-outs, attempts and connections of all clients, also of those that botocore makes."""
    from botocore.config import Config

    return Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CONNECTIONS,
    )


def core_session(profile: str | None) -> Any:
    """A session of botocore for a profile; as in the AWS CLI, AWS_REGION sets the region."""
    import botocore.session

    core: Any = botocore.session.Session(profile=profile)
    if region := os.environ.get("AWS_REGION"):  # the AWS CLI reads AWS_REGION, botocore does not
        core.set_config_variable("region", region)
    return core


def default_region(session: Any, only_regions: Iterable[str]) -> str:
    """The first of the regions outside partition aws, such as cn-north-1; us-east-1 if none is."""
    from botocore.exceptions import UnknownRegionError

    for name in only_regions:
        with contextlib.suppress(UnknownRegionError):
            if session.get_partition_for_region(name) != "aws":
                return name
    return "us-east-1"


def sign_in(profile: str | None, only_regions: Iterable[str] = ()) -> Any:
    """A session of botocore that serves only to get credentials, and to refresh them.

    Without a configured region, `only_regions` tell where to sign in, such as in China. The clients
    that botocore makes here can do all that their services offer. Raises AwsCallFailed, or
    ProfileNotFound.
    """
    from botocore.exceptions import ProfileNotFound

    core = core_session(profile)
    if not core.get_config_variable("region"):
        core.set_config_variable("region", default_region(core, only_regions))
    core.set_default_client_config(client_config())
    events = core.get_component("event_emitter")
    register_handlers(events, lambda: "")
    events.register("needs-retry", stop_after_timeouts)
    try:
        roles = core.get_component("credential_provider").get_provider("assume-role")
        roles.cache, roles._prompter = RoleCache(), ask_mfa_code
        load_credentials(core)
    except ProfileNotFound:
        raise
    except Exception as error:
        raise AwsCallFailed(describe_failure(error, SIGN_IN)) from error
    return core


def load_credentials(core: Any) -> None:
    """Loads the credentials of a session; sets time limits for that and for later refreshes."""

    def load() -> Any:
        """The credentials after they were loaded, or None if none are configured."""
        if credentials := core.get_credentials():
            credentials.get_frozen_credentials()  # may ask for an MFA code or run a program
        return credentials

    credentials = in_time(load, SIGN_IN_TIMEOUT)()
    if refresh := getattr(credentials, "_refresh_using", None):
        credentials._refresh_using = in_time(refresh, REFRESH_TIMEOUT)


def in_time(get: Callable[[], T], seconds: float) -> Callable[[], T]:
    """A function that calls `get` with a time limit; every failure becomes AwsCallFailed.

    While `get` hangs it is not called again, so that a program is not started over and over.
    """
    running: list[Future[T]] = []

    def call() -> T:
        """The result of `get`; AwsCallFailed if that fails, or still runs after the limit."""
        pause = 0 if running else seconds
        if not running:
            running.append(ThreadPoolExecutor(1).submit(get))
        if not wait(running, timeout=pause).done:
            why = f"(no credentials within {seconds} seconds)"
            raise AwsCallFailed(SIGN_IN.error("CredentialRetrievalError", why))
        try:
            return running.pop().result()
        except Exception as error:
            raise AwsCallFailed(describe_failure(error, SIGN_IN)) from error

    return call


def ask_mfa_code(prompt: str) -> str:
    """Asks for an MFA code on the terminal; raises AwsCallFailed if there is no terminal."""
    import getpass

    if not (sys.stdin and sys.stdin.isatty()):
        try:
            os.close(os.open("/dev/tty", os.O_RDWR))
        except OSError as error:
            raise AwsCallFailed(AwsError("NoTerminal")) from error
    return getpass.getpass(prompt)


def new_session(profile: str | None, base: Any, writes: Collection[str] = ()) -> boto3.Session:
    """A read-only session with the credentials of `base`; `writes` names what else it may call.

    It has the configuration of a profile.
    """
    import boto3

    core = core_session(profile)
    loader = read_only_loader(core.get_config_variable("data_path"), tuple(writes))
    core.register_component("data_loader", loader)
    provider = SimpleNamespace(load_credentials=base.get_credentials)
    core.register_component("credential_provider", provider)
    return boto3.Session(botocore_session=core)


# --- events of botocore ---------------------------------------------------------------


WEB_PAGE = re.compile(  # matches web pages and plain text: AWS answers in XML or JSON
    rb"\s*([^\s<{\[]|<!--|(<\?xml[^>]*>\s*)?<(!doctype\s+)?html\b)", re.IGNORECASE
)


def register_handlers(events: Any, account: Callable[[], str]) -> None:
    """Registers handlers that log calls, and make errors of responses cut off or not from AWS."""
    events.register("before-sign", note_start)
    events.register("before-parse", check_body)
    events.register("response-received", functools.partial(log_attempt, account))
    events.register("after-call", raise_if_malformed)


def note_start(request: Any, **_: Any) -> None:
    """Notes when an attempt of a call is sent, and when the first attempt was."""
    request.context["sent"] = now = time.monotonic()
    request.context.setdefault("first_sent", now)
    getattr(IN_CALL, "sent", []).append(now)


def log_attempt(
    account: Callable[[], str], event_name: str, response_dict: dict[str, Any] | None,
    parsed_response: dict[str, Any] | None, context: dict[str, Any],
    exception: Exception | None, **_: Any,
) -> None:  # fmt: skip
    """Logs an attempt of a call in our own words: botocore's log holds tokens and passwords."""
    if not CALL_LOG.isEnabledFor(logging.DEBUG):
        return
    service, operation = event_name.split(".")[1:]
    status = response_dict["status_code"] if response_dict is not None else type(exception).__name__
    found = str((parsed_response or {}).get("ResponseMetadata", {}).get("RequestId", ""))
    id = found if re.fullmatch(r"[\w.:=/+-]{1,64}", found, re.ASCII) else "-"
    attempt = context.get("retries", {}).get("attempt", 1)
    milliseconds = 1000 * (time.monotonic() - context.get("sent", time.monotonic()))
    call = f"{service} {operation} {context.get('client_region')} {account() or '-'}"
    CALL_LOG.debug(f"{call} {status} {id} attempt {attempt} {milliseconds:.0f} ms")


def check_body(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Turns a response into an error if it is cut off, or does not come from AWS.

    botocore raises for such a response, or takes it for an empty one, and does not ask again.
    """
    body = response_dict["body"]
    if not isinstance(body, bytes):  # a stream (an S3 object's content), left to `read_whole`
        return
    page = WEB_PAGE.match(body)
    if not page and not is_cut_off(body, response_dict["headers"]):
        return
    if response_dict["status_code"] < 500:  # with 5xx it may be of AWS's load balancer
        code = "NotAws" if page else "MalformedResponse"
        customized_response_dict["Error"] = {"Code": code, "Message": ""}
        response_dict["status_code"] = 503
    response_dict["body"] = b""


def is_cut_off(body: bytes, headers: Any) -> bool:
    """Whether a body is shorter than announced, or is not complete XML or JSON."""
    from xml.etree import ElementTree

    length = str(headers.get("content-length", ""))
    with contextlib.suppress(ElementTree.ParseError, ValueError):
        if body.lstrip().startswith(b"<"):
            ElementTree.fromstring(body)  # noqa: S314 - as botocore parses it
        elif body.strip():
            json.loads(body)
        return length.isdigit() and len(body) < int(length)
    return True


def raise_if_malformed(parsed: dict[str, Any], model: Any, **_: Any) -> None:
    """Raises ClientError for a response that `check_body` made an error, whatever its status."""
    from botocore.exceptions import ClientError

    if parsed.get("Error", {}).get("Code") in ("NotAws", "MalformedResponse"):
        raise ClientError(parsed, model.name)  # type: ignore[arg-type]


def is_timeout(error: Exception | None) -> bool:
    """Whether an exception means that nothing answered in time."""
    from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

    return isinstance(error, (ConnectTimeoutError, ReadTimeoutError, TimeoutError, FutureTimeout))


def stop_after_timeouts(attempts: int, caught_exception: Exception | None, **_: Any) -> None:
    """Re-raises a time-out after two attempts or more, so that no further attempt is made.

    botocore has one number of attempts for all failures; raising is how to stop early.
    """
    if caught_exception and is_timeout(caught_exception) and attempts > 1:
        raise caught_exception


def read_whole(send: Callable[..., dict[str, Any]], **params: Any) -> dict[str, Any]:
    """The response to a call, with a streamed body as bytes; asked again if that is cut off."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    for tries_left in reversed(range(MALFORMED_ATTEMPTS)):
        response = send(**params)
        if "Body" not in response:
            break
        try:
            return response | {"Body": response["Body"].read()}
        except (HTTPClientError, IncompleteReadError):
            if not tries_left:
                raise
    return response


# --- what went wrong ------------------------------------------------------------------

ERROR_CODE = re.compile(r"[\w.:-]{1,64}", re.ASCII)
PLAIN_WORD = re.compile(r"[(\"'`]?[A-Za-z][a-z'-]{0,15}[)\"'`]?[.,:;!?]?")
DENIER = re.compile(  # finds in a message of AWS which policy denied the call
    r"explicit deny in an? ([\w -]{1,30}(?:policy|boundary))"
    r"|because no ((?:service control|resource control|session) policy|permissions boundary)"
)
# The service of each operation with which botocore gets credentials; all others are of STS
SIGN_IN_SERVICES = {
    "GetRoleCredentials": "sso",
    "CreateToken": "sso-oidc",
    "CreateOAuth2Token": "signin",
}


def describe_failure(error: Exception, call: Call) -> AwsError:
    """The error of a failed call, without the exception's text, which may hold a secret.

    Whatever is raised here comes from botocore, whose parsers raise all sorts of errors for
    what is not a response of AWS.
    """
    from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

    if isinstance(error, AwsCallFailed):
        return error.error
    # botocore refreshed the credentials, and the new ones have expired, too
    if isinstance(error, RuntimeError) and "still expired" in str(error):
        return call.error("ExpiredToken")
    if isinstance(error, CredentialRetrievalError):
        return call.error("CredentialRetrievalError", program_words(error))
    if isinstance(error, BotoCoreError) or (call == SIGN_IN and not isinstance(error, ClientError)):
        return call.error(type(error).__name__)
    if is_timeout(error):
        return call.error("NoResponse", f"within {CALL_TIMEOUT} seconds")
    if not isinstance(error, ClientError):
        code = "InvalidEndpoint" if str(error).startswith("Invalid endpoint") else ""
        return call.error(code or "MalformedResponse", "" if code else NOT_AWS)
    name = error.operation_name
    if name != call.operation:
        call = Call(SIGN_IN_SERVICES.get(name, "sts"), name, call.region)
    about = error.response.get("Error", {})
    code, message = str(about.get("Code", "")), str(about.get("Message", ""))
    if code == "NotAws" or not ERROR_CODE.fullmatch(code):
        return call.error("MalformedResponse", NOT_AWS)
    if message.startswith("MultiFactorAuthentication failed"):
        return call.error("MfaCodeRefused")  # for a wrong code AWS says AccessDenied
    denier = DENIER.search(message)
    detail = f"{DENIED_BY}{denier[1] or denier[2]})" if denier else ""
    return call.error(code, "(cut off)" if code == "MalformedResponse" else detail)


def program_words(error: Exception) -> str:
    """The reason that a failed `credential_process` program gave; all but plain words are ***.

    Whatever may be a secret is left out: long words, and those with digits or signs in them.
    """
    text = getattr(error, "kwargs", {}).get("error_msg", "")
    plain = [word if PLAIN_WORD.fullmatch(word) else "***" for word in str(text).split()]
    return textwrap.shorten(" ".join(plain), 200, placeholder=" ***")


# --- accounts -------------------------------------------------------------------------


class Pace:
    """The pace of a client's calls: unlimited until AWS throttles one, then with a delay.

    botocore's `adaptive` retries count every refusal of a volley, and then crawl for seconds.
    """

    def __init__(self) -> None:
        self.delay = self.next = self.slowed = 0.0
        self.settled = False  # whether the pace no longer changes: AWS refused the slowest, too
        self.lock = threading.Lock()

    def wait(self, request: Any = None, **_: Any) -> None:
        """Waits until the next call may be made. It is signed only then, because signatures age."""
        with self.lock:
            now = time.monotonic()
            self.next = max(now, self.next + self.delay)
            pause = self.next - now
        getattr(IN_CALL, "sent", []).append(now + pause)
        time.sleep(pause)
        if request and "first_sent" in request.context:
            request.context["first_sent"] += pause  # CALL_TIMEOUT excludes waiting for the pace

    def learn(self, refused: bool) -> None:
        """Slows calls after a refusal, speeds them up after an answer; settles if no pace helps."""
        with self.lock:
            now = time.monotonic()
            if self.settled:
                return
            if not refused:
                self.delay *= FASTER
            elif now - self.slowed > VOLLEY:
                self.delay, self.slowed = max(self.delay * SLOWER, INITIAL_DELAY), now
                if self.delay > MAX_DELAY:
                    self.delay, self.settled = SETTLED_DELAY, True


@dataclass(eq=False)
class Account:
    """The account under audit; every call to AWS goes through its methods."""

    session: boto3.Session
    now: datetime  # the fixed time from which all ages of this audit are counted
    only_regions: Collection[str] = ()  # the regions to audit; empty: all that are enabled
    excluded_regions: Collection[str] = ()  # enabled regions that are not to be audited
    max_key_age: int = MAX_KEY_AGE  # days after which an access key is too old
    number: str = ""  # the account's number; blank until STS has answered, as is the ARN
    arn: str = ""  # the ARN with which the auditor is signed in to this account
    profile: str = ""  # the profile with which the AWS CLI reaches this account
    clients: dict[tuple[str, str], Any] = field(default_factory=dict)
    cache: dict[Any, Future[Any]] = field(default_factory=dict)  # results kept by `once`
    # failures in a row: by call, by region, and of credentials
    failures: Counter[Call | str] = field(default_factory=Counter)
    # calls throttled at every attempt
    throttled_calls: dict[Call, AwsError] = field(default_factory=dict)
    throttling_codes: set[str] = field(default_factory=set)  # error codes that meant throttling
    renewed_at: float = -math.inf  # when credentials that botocore took for valid were last renewed
    fatal_error: AwsError | None = None  # the error after which no further call makes sense
    # guards clients, cache and the counting of failures; it is not held while AWS is called
    lock: Any = field(default_factory=threading.RLock)
    callers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(CALLERS))

    @functools.cached_property
    def home_region(self) -> str:
        """The region for global services: the configured one, else one of --region's partition."""
        return self.session.region_name or default_region(self.session, self.only_regions)

    @property
    def partition(self) -> str:
        """The AWS partition of the account, such as aws-cn, which is a part of every ARN."""
        return self.arn.split(":")[1]

    def ask(
        self, service: str, operation: str, region: str = "",
        absent: Collection[str] = (), **params: Any,
    ) -> Response:  # fmt: skip
        """The response to a single call; an empty one if AWS answers an error code in `absent`.

        A blank region is the home region: `aws.ask("s3", "GetBucketAcl", "eu-west-1", Bucket="b")`.
        Raises AwsCallFailed.
        """
        call = Call(service, operation, region or self.home_region)
        pages = self._pages(call, params)
        try:
            return Response(self._call(call, lambda: next(pages)), call)
        except AwsCallFailed as failed:
            if failed.error.code not in absent:
                raise
            return Response({}, call)

    def fetch(
        self, service: str, operation: str, items: str, region: str = "",
        page_size: int = 1000, **params: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """The items of all pages, one by one: `aws.fetch("iam", "ListUsers", "Users")`.

        Raises AwsCallFailed while it is iterated.
        """
        call = Call(service, operation, region or self.home_region)
        pages = self._pages(call, params, page_size)
        while page := self._call(call, lambda: next(pages, None)):
            # A list of S3 has a count (KeyCount), and lacks its items if there are none
            yield from page.get(items, ()) if "KeyCount" in page else Response(page, call)[items]

    def _pages(self, call: Call, params: dict[str, Any], size: int = 0) -> Iterator[dict[str, Any]]:
        """The responses to a call, page after page, of at most `size` items each if given."""
        from botocore import xform_name

        client, name = self.client(call.service, call.region), xform_name(call.operation)
        if size and client.can_paginate(name):
            config = {"PageSize": size}
            yield from client.get_paginator(name).paginate(**params, PaginationConfig=config)
            return
        send = functools.partial(read_whole, getattr(client, name))
        yield (page := send(**params))
        while token := page.get("NextToken"):  # pages where botocore has no paginator
            yield (page := send(**params, NextToken=token))

    def _call(self, call: Call, send: Callable[[], T]) -> T:
        """The result of `send`; AwsCallFailed if it fails, or is not tried after other failures.

        It runs in a thread, the only way to give up on a response that comes in drops. Nothing is
        sent after a fatal error, nor after MAX_FAILURES of the same call in a row.
        """
        if self.fatal_error:
            raise AwsCallFailed(self.fatal_error)
        if self.failures[call] >= MAX_FAILURES and call.operation not in NEVER_GIVEN_UP:
            silent = call.error("NoResponse", f"(asked {MAX_FAILURES} times)")
            raise AwsCallFailed(self.throttled_calls.get(call, silent))
        try:
            self.client(call.service, call.region)  # nothing is sent to make a client: not timed
            result = self._wait_for(send)
        except Exception as error:
            raise AwsCallFailed(self._error(error, call)) from error
        self.failures[call] = self.failures[call.region] = self.failures[CREDENTIALS] = 0
        return result

    def _wait_for(self, send: Callable[[], T]) -> T:
        """The result of `send`; TimeoutError if an attempt takes longer than CALL_TIMEOUT."""
        sent = [time.monotonic()]  # times of submission (no thread may be free) and of each attempt

        def run() -> T:
            """The result of `send`; note_start adds the time of each attempt to `sent`."""
            IN_CALL.sent = sent
            return send()

        future = self.callers.submit(run)
        while True:
            left = (begun := sent[-1]) + CALL_TIMEOUT - time.monotonic()
            if wait([future], timeout=max(left, 0)).done or sent[-1] == begun:
                if future.cancel():  # no thread was free to begin with `send`
                    raise FutureTimeout
                return future.result(timeout=0)

    def _error(self, error: Exception, call: Call) -> AwsError:
        """The error of a failed call, which is counted, and kept if no later call can succeed."""
        failure = describe_failure(error, call)
        with self.lock:
            if is_timeout(error):
                self.failures.update([call, call.region])
            if failure.code in self.throttling_codes:
                self.throttled_calls[call] = failure = replace(failure, detail=LIMITS_USED_UP)
                self.failures.update([call])
            if failure.service == SIGN_IN.service:
                self.failures.update([CREDENTIALS])
            if failure.code in EXPIRED_CODES or self.failures[CREDENTIALS] >= MAX_FAILURES:
                self.fatal_error = failure = self.fatal_error or failure
        return failure

    def client(self, service: str, region: str) -> Any:
        """The client of a service in a region, made once; a lock makes that thread-safe."""
        with self.lock, CLIENT_LOCK:
            if (service, region) not in self.clients:
                make: Callable[..., Any] = self.session.client
                client = make(service, region, config=client_config())
                pace, events = Pace(), client.meta.events
                events.register("before-sign", pace.wait)
                register_handlers(events, lambda: self.number)
                on_attempt = functools.partial(self._on_attempt, region, pace)
                events.register_first("needs-retry", on_attempt)
                self.clients[service, region] = client
            return self.clients[service, region]

    def close(self) -> None:
        """Closes the connections; a call that a thread still makes fails with the error Closed."""
        with self.lock:
            self.fatal_error = AwsError("Closed")
            for client in self.clients.values():
                client.close()
            self.clients.clear()
            self.cache.clear()
            self.callers.shutdown(wait=False)

    def _on_attempt(self, region: str, pace: Pace, **event: Any) -> float | bool | None:
        """The seconds before another attempt, False for none, None to leave it to botocore.

        The pace learns from the attempt. A malformed answer is asked for again after a pause, and
        credentials refused at first are renewed. A time-out is raised if no attempt is to follow.
        """
        from botocore.retries import standard

        attempts, failed, response = event["attempts"], event["caught_exception"], event["response"]
        if is_timeout(failed) and self.failures[region]:
            raise failed
        stop_after_timeouts(attempts, failed)
        detector = standard.ThrottlingErrorDetector(standard.RetryEventAdapter())
        throttled = detector.is_throttling_error(**event)
        pace.learn(throttled)
        code = response[1].get("Error", {}).get("Code", "") if response else ""
        if throttled:
            self.throttling_codes.add(code)
        if time.monotonic() - event["request_dict"]["context"]["first_sent"] > CALL_TIMEOUT:
            return False
        if code == "MalformedResponse":
            return MALFORMED_PAUSE if attempts < MALFORMED_ATTEMPTS else False
        if code in RENEWABLE_CODES and attempts == 1 and self._renew_credentials():
            return 0
        return None

    def _renew_credentials(self) -> bool:
        """Refreshes credentials that botocore takes to be valid; False if their kind cannot be."""
        from botocore.credentials import RefreshableCredentials

        credentials: Any = self.session.get_credentials()
        if not isinstance(credentials, RefreshableCredentials):
            return False
        private: Any = credentials
        with private._refresh_lock:
            # another thread may have renewed the credentials just now
            if time.monotonic() - self.renewed_at > CALL_TIMEOUT:
                private._protected_refresh(is_mandatory=True)
                self.renewed_at = time.monotonic()
        return True


# === audit ============================================================================

Progress = Callable[[str], None]


class AuditInput(NamedTuple):
    """The task of an audit, and what is known from earlier ones."""

    checks: list[Check]
    acceptances: list[Acceptance]
    state: AccountState | None  # what is known from earlier runs; None without --state
    today: str  # the day on which the run began


class Audit(NamedTuple):
    """The outcome of an audit: the report, and what to write into the state at the end."""

    report: Report
    change: StateChange
    used_acceptances: set[Acceptance]


def audit(aws: Account, job: AccountJob, given: AuditInput, progress: Progress) -> Audit:
    """Runs the checks on an account; makes its report, and the change for its state."""
    began = time.monotonic()
    limit_regions(aws)
    state, today = given.state or AccountState(), given.today
    start_prefetch(aws, given.checks)
    results = [run_check(definition, aws, progress) for definition in given.checks]
    results = [with_unlisted_regions(result, state) for result in results]
    results, coverage = apply_acceptances(results, aws.number, given)
    results = [apply_state(result, state, today) for result in results] if given.state else results
    change = diff_with_state(results, given, aws, coverage)
    names = [one.name for one in given.checks]
    controls = {name: evaluate_control(one, name) for one in results for name in one.check.controls}
    enabled = answer_or_error(enabled_regions, aws)
    aliases = answer_or_error(account_aliases, aws)
    report = Report(
        account=aws.number,
        started=aws.now.replace(microsecond=0),
        name=job.name,
        profile=job.profile,
        auditor_arn=aws.arn,
        home_region=aws.home_region,
        question=Question(names, sorted(aws.only_regions), aws.max_key_age, __version__),
        aliases=aliases if isinstance(aliases, list) else [],
        regions=answer_or_error(regions, aws),
        enabled_regions=len(enabled) if isinstance(enabled, list) else 0,
        seconds=round(time.monotonic() - began, 1),
        results=results,
        controls=controls,
    )
    if given.state:
        after = apply_change(given.state, change)
        first = any(state.since.get(name, today) == today for name in names)
        report = replace(report, first_run=first, resolved=after.resolved, history=[*after.history])
    used = {row.acceptance for row in report.rows() if row.acceptance}
    return Audit(report, change, used)


def limit_regions(aws: Account) -> None:
    """Limits the account to the regions of --region, without those of --exclude-region.

    Raises CannotRun if a region is not enabled in the account, or if none is left.
    """
    wanted, excluded = set(aws.only_regions), set(aws.excluded_regions)
    if not wanted and not excluded:
        return
    enabled = answer_or_error(enabled_regions, aws)
    if isinstance(enabled, AwsError):  # the checks will say that regions cannot be read
        return
    if unknown := sorted(wanted - {*enabled}):
        valid = ", ".join(enabled)
        raise CannotRun(f"no such region in this account: {', '.join(unknown)} (valid: {valid})")
    aws.only_regions = (wanted or {*enabled}) - excluded
    if not aws.only_regions:
        raise CannotRun("--exclude-region leaves no region")


# --- running a check ------------------------------------------------------------------


def check_target(definition: Check, aws: Account, target: str) -> tuple[list[Row], Counter[str]]:
    """The rows of one target, and the number of resources evaluated, by control.

    A failure costs the rest of this target: it becomes a row that is NOT CHECKED.
    """
    rows: list[Row] = []
    found = definition.rows(aws, target)
    try:
        while True:
            rows.append(definition.with_arn(next(found), aws))
            require_declared_controls(definition, rows[-1])
    except StopIteration as end:
        number = end.value or 0
        return rows, number if isinstance(number, Counter) else Counter({"": number})
    except Exception as error:
        if isinstance(error, AwsCallFailed) and error.error.code in GONE_CODES:
            return [], Counter()
        return [*rows, failed_target_row(definition, target, to_aws_error(error))], Counter()


def require_declared_controls(definition: Check, row: Row) -> None:
    """Raises ValueError if the row names a control that its check does not declare."""
    named = {one.control for one in row.control_findings}
    if unknown := named - definition.controls.keys():
        raise ValueError(f"{definition.title} does not declare {', '.join(sorted(unknown))}")


def print_traceback(error: Exception) -> None:
    """Prints the traceback of a bug; a library's message is left out: it may hold a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename != __file__:
        error.args = ()
    error.__cause__, error.__suppress_context__ = None, True
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()


def to_aws_error(error: Exception) -> AwsError:
    """Any exception as an AwsError; the traceback of a bug goes to standard error."""
    if isinstance(error, AwsCallFailed):
        return error.error
    if isinstance(error, CannotRun):
        return AwsError("CannotRun", detail=str(error))
    print_traceback(error)
    return AwsError("InternalError", detail=f"{type(error).__name__}: {error}".removesuffix(": "))


def failed_target_row(definition: Check, target: str, error: AwsError, name: str = "") -> Row:
    """The row NOT CHECKED of a target, with the error; `name` is shown in its place if given."""
    return not_checked_row(target, "", {definition.columns[0]: name or target}, error)


def run_check(definition: Check, aws: Account, progress: Progress) -> CheckResult:
    """Runs a check over all its targets, side by side; the rows come in target order."""
    pool, noun = ThreadPoolExecutor(definition.threads), definition.targets.noun
    futures: dict[str, Future[tuple[list[Row], Counter[str]]]] = {}
    rows, evaluated, unlisted = list[Row](), Counter[str](), list[Row]()
    try:
        try:
            for target in definition.targets.names(aws):
                futures[target] = pool.submit(check_target, definition, aws, target)
        except Exception as error:
            unlisted = [failed_target_row(definition, f"<{noun}>", to_aws_error(error))]
        for done, future in enumerate(futures.values(), 1):
            progress(f"{definition.title}: {done:,} of {len(futures):,} {noun}")
            found, number = future.result()
            rows += found
            evaluated += number
    finally:  # after an interruption, threads that still wait for AWS must not delay the end
        pool.shutdown(wait=False, cancel_futures=True)
    rows, failed = collapse_fatal_errors(definition, [*rows, *unlisted], aws.fatal_error)
    targets = len(futures.keys() - failed)
    if all(row.error for row in rows) and (targets or not rows):
        text = definition.empty_message.format(targets=targets, evaluated=evaluated[""])
        rows.insert(0, Row(NOTHING_TARGET, "", {}, Message(text)))
    complete = not (definition.targets.regional and aws.only_regions)
    resources = evaluated[""] or sum(not row.error and row.target != NOTHING_TARGET for row in rows)
    looked_at = {*map(region_of, futures)}
    if definition.targets.regional and not unlisted:
        with contextlib.suppress(AwsCallFailed):
            looked_at |= {*regions(aws)}
    return CheckResult(
        definition, rows, complete, resources, looked_at, failed, not unlisted, evaluated
    )


def collapse_fatal_errors(
    definition: Check, rows: list[Row], fatal_error: AwsError | None
) -> tuple[list[Row], set[str]]:
    """The rows, with a single one for all that a fatal error cost, and the failed targets.

    Expired credentials are a fatal error.
    """
    failed = {row.target for row in rows if row.error and not row.item}
    lost = {row.target for row in rows if fatal_error and row.error == fatal_error}
    if lost and fatal_error:
        name = f"{len(lost):,} {definition.targets.noun}"
        rows = [row for row in rows if row.error != fatal_error]
        rows.append(failed_target_row(definition, EXPIRED_TARGET, fatal_error, name))
    return rows, failed | lost


def start_prefetch(aws: Account, checks: Iterable[Check]) -> None:
    """Starts the calls of later checks in threads, while earlier checks run.

    Their results are cached, errors too: nothing is asked twice, and only the waiting differs.
    """
    calls = dict.fromkeys([account_aliases, *(call for one in checks for call in one.prefetch)])
    pool = ThreadPoolExecutor(len(calls))
    for call in calls:
        pool.submit(call, aws)
    pool.shutdown(wait=False)


# --- acceptances ----------------------------------------------------------------------


def apply_acceptances(
    results: Iterable[CheckResult], account: str, given: AuditInput
) -> tuple[list[CheckResult], dict[str, Coverage]]:
    """The results with the acceptance of each row, and what each line of the accept file covers.

    Of several lines that match, the most exact one counts. It covers what was there when it
    first held; what is worse is a finding again.
    """
    found, covered = [], defaultdict[str, dict[str, Row]](dict)
    before = given.state.coverage if given.state else {}
    for result in results:
        rows = []
        for row in result.rows:
            id = result.check.id(row)
            matching = [
                one for one in given.acceptances if one.matches(account, id, bool(row.error))
            ]
            if row.status != OK and matching:
                acceptance = max(matching, key=Acceptance.exactness)
                ended = why_ended(acceptance, before.get(acceptance.line), id, row, given.today)
                row = replace(row, acceptance=acceptance, acceptance_ended=ended)
                if not ended:
                    row = replace(row, remediation=Remediation())  # no command for accepted rows
                    covered[acceptance.line][id] = row
            rows.append(row)
        found.append(replace(result, rows=rows))
    return found, {line: cover(before.get(line), rows) for line, rows in covered.items()}


def why_ended(acceptance: Acceptance, known: Coverage | None, id: str, row: Row, today: str) -> str:
    """Why an acceptance does not count for a row: expired, or the row is worse; blank if it counts.

    `known` is what the acceptance covered when it first held; None if it is new.
    """
    if acceptance.until and acceptance.until < today:
        return "expired"
    if not known or row.error:
        return ""
    if before := known.findings.get(id):
        return "does not cover what is worse" if is_worse(row, *before) else ""
    if not row.fully_read:
        return ""
    if rank_of(row.severity) < rank_of(known.worst):
        return "does not cover what is more severe"
    alike = {(one.severity, first_control(one.control)) for one in known.findings.values()}
    control = first_control(row.control)
    other = row.severity == known.worst and (row.severity, control) not in alike
    return "does not cover what is worse" if other else ""


def cover(known: Coverage | None, rows: dict[str, Row]) -> Coverage:
    """The coverage of an accept line with rows added; findings covered before stay as they were."""
    found = {id: CoveredFinding(row.severity, row.control, row.extent) for id, row in rows.items()}
    if known:
        return Coverage(known.worst, found | known.findings)
    return Coverage(min((row.severity for row in rows.values()), key=rank_of), found)


def rank_of(severity: str) -> int:
    """The rank of a severity: 0 for the most serious; no severity comes last."""
    return SEVERITIES.index(severity) if severity else len(SEVERITIES)


def first_control(controls: str) -> str:
    """The first of the controls that a row fails: `EC2.19` of `EC2.19, EC2.13`."""
    return controls.split(", ")[0]


def is_worse(row: Row, severity: str, control: str, extent: frozenset[str]) -> bool:
    """Whether a row is worse than its earlier severity, control and extent.

    Its severity rose, or it fails another control at the same severity, or its extent has
    something that it had not; if its severity fell, only if the extent has all that it had, too.
    If no earlier severity is known (schema 1), it is not worse.
    """
    if not severity:
        return False
    new = bool(row.extent - extent)
    if not row.fully_read:  # the severity may be too high, but what the extent adds was really seen
        return new
    # a less severe row may name a part of its extent in other words: only an addition is worse
    if rank_of(row.severity) > rank_of(severity):
        return row.extent > extent
    return new or row.severity != severity or first_control(row.control) != first_control(control)


# --- the state ------------------------------------------------------------------------


class StateChange(NamedTuple):
    """The difference between two audits of an account, to be applied to its state.

    Other runs may have changed the state meanwhile: what this run did not look at stays.
    """

    today: str
    checks: list[str]  # the names of the checks that were run
    seen: dict[str, KnownFinding]  # the findings of this audit, also accepted ones, by ID
    gone: set[str]  # IDs of known findings that the state is to forget
    resolved: dict[str, KnownFinding]
    not_checked: int
    coverage: dict[str, Coverage]
    max_key_age: int
    account_status: str = ACTIVE


def resource_key(id: str, finding: Row | KnownFinding) -> tuple[str, str]:
    """The key that all findings of one resource in a check share, in rows and in the state."""
    return check_name_of(id), finding.resource or finding.target


def vanished_findings(result: CheckResult, state: AccountState) -> dict[str, KnownFinding]:
    """The known findings that the check looked for and did not find any more, by ID."""
    now = {result.check.id(row) for row in result.rows if row.status != OK and not row.error}
    return {
        id: known
        for id, known in state.findings.items()
        if check_name_of(id) == result.check.name
        and id not in now
        and not is_undetermined(result, id, known)
    }


def is_undetermined(result: CheckResult, id: str, known: KnownFinding) -> bool:
    """Whether a known finding that is missing may still exist, as not all was looked at."""
    unread = [row for row in result.rows if row.error]
    prefixes = tuple(result.check.id(row).removesuffix(NOT_CHECKED_END) for row in unread)
    resources = {row.resource for row in unread if row.resource}
    if not result.targets_complete or known.target in result.failed_targets:
        return True
    if f"{id}/".startswith(prefixes) or known.resource in resources:
        return True
    return result.check.targets.regional and region_of(known.target) not in result.regions


def region_of(target: str) -> str:
    """The region of a regional target, which is a region or begins with one and a slash."""
    return target.partition("/")[0]


def with_unlisted_regions(result: CheckResult, state: AccountState) -> CheckResult:
    """The result with a row NOT CHECKED for each disabled region that has known findings.

    Disabling a region removes the access to its resources, not the resources.
    """
    if not (result.check.targets.regional and result.complete and result.targets_complete):
        return result
    lost = Counter(
        region_of(known.target)
        for id, known in state.findings.items()
        if check_name_of(id) == result.check.name and region_of(known.target) not in result.regions
    )
    rows = [*result.rows]
    for region, number in lost.items():
        detail = f"its {counted(number, 'finding')} may remain"
        error = AwsError("RegionNotEnabled", detail=detail)
        rows.append(failed_target_row(result.check, region, error))
    return replace(result, rows=rows)


def apply_state(result: CheckResult, state: AccountState, today: str) -> CheckResult:
    """The result with the day on which each row was first seen, and its change since last time."""
    vanished = defaultdict[tuple[str, str], dict[str, KnownFinding]](dict)
    for id, known in vanished_findings(result, state).items():
        vanished[resource_key(id, known)][id] = known
    first_run = state.since.get(result.check.name, today) == today
    rows = []
    for row in result.rows:
        id = result.check.id(row)
        if row.status == OK or row.error:
            rows.append(row)
        elif before := state.findings.get(id):
            rows.append(changed_row(row, before, today, first_run))
        elif moved := vanished.get(resource_key(id, row)):
            rows.append(moved_row(result, row, moved, today))
        else:
            rows.append(replace(row, first_seen=today, change="" if first_run else NEW))
    return replace(result, rows=rows)


def changed_row(row: Row, before: KnownFinding, today: str, first_run: bool = False) -> Row:
    """The row with its first day: worse (or no longer accepted), else new today, else better."""
    change, was = "", before.result
    uncovered = before.accepted and row.status == FINDING and not row.acceptance_ended
    if uncovered or is_worse(row, before.severity, before.control, before.extent):
        change, was = WORSE, f"{before.result} (accepted)" if before.accepted else before.result
    elif before.worse_since == today:  # an earlier run of today already found it to be worse
        change, was = WORSE, before.was
    elif before.first_seen == today:
        change, was = "" if first_run else NEW, ""
    elif before.severity and (row.severity, row.extent) != (before.severity, before.extent):
        change = BETTER if row.fully_read else ""
    return replace(row, first_seen=before.first_seen, change=change, was=was if change else "")


def moved_row(result: CheckResult, row: Row, vanished: dict[str, KnownFinding], today: str) -> Row:
    """The finding in place of `vanished` ones, with their first day: WORSE; if renamed, compared.

    For example, ports 22-30 replace 22; of a renamed user only the name differs.
    """
    name = result.check.name
    ends = {id.removeprefix(f"{name}/{one.target}"): one for id, one in vanished.items()}
    renamed = ends.get(result.check.id(row).removeprefix(f"{name}/{row.target}"))
    first_seen = min(known.first_seen for known in vanished.values())
    was = in_words(known.result for known in vanished.values())
    if renamed:
        return changed_row(row, renamed._replace(first_seen=first_seen), today)
    return replace(row, first_seen=first_seen, change=WORSE, was=was)


def diff_with_state(
    results: Collection[CheckResult], given: AuditInput, aws: Account, coverage: dict[str, Coverage]
) -> StateChange:
    """The changes of the account's state; `coverage` is that of each line of the accept file.

    A check of key ages with another --max-key-age resolves nothing: it asked something else.
    """
    state, today = given.state or AccountState(), given.today
    found = [(one.check.id(row), row) for one in results for row in one.rows if row.first_seen]
    seen = {id: known_finding(row, state.findings.get(id), today) for id, row in found}
    moved = {resource_key(id, row) for id, row in found if id not in state.findings}
    gone: dict[str, KnownFinding] = {}
    for result in results:
        if not result.check.uses_key_age or state.max_key_age in (0, aws.max_key_age):
            gone |= vanished_findings(result, state)
    resolved = {id: known for id, known in gone.items() if resource_key(id, known) not in moved}
    errors = [row.error for result in results for row in result.rows if row.status == NOT_CHECKED]
    checks = [result.check.name for result in results]
    asked = any(result.check.uses_key_age for result in results)
    age = aws.max_key_age if asked else state.max_key_age
    return StateChange(today, checks, seen, {*gone}, resolved, len(errors), coverage, age)


def known_finding(row: Row, before: KnownFinding | None, today: str) -> KnownFinding:
    """The finding of a row, in the form in which the state keeps it.

    If it was not read completely, the severity and the extent of last time are kept.
    """
    now = KnownFinding(
        row.first_seen, row.result, row.target, row.severity, row.control, row.extent, row.resource,
        accepted=row.status == ACCEPTED,
    )  # fmt: skip
    if row.change == WORSE:
        now = now._replace(worse_since=today, was=row.was)
    if row.fully_read or before is None:
        return now
    extent = before.extent | row.extent if before.severity else before.extent
    return now._replace(severity=before.severity, control=before.control, extent=extent)


def apply_change(state: AccountState, change: StateChange) -> AccountState:
    """The state with a change applied; what other runs have changed in it meanwhile stays."""
    kept = {id: known for id, known in state.findings.items() if id not in change.gone}
    seen = {
        id: known._replace(first_seen=min(known.first_seen, kept.get(id, known).first_seen))
        for id, known in change.seen.items()
    }
    earlier = state.resolved if state.last_day == change.today else {}
    findings, resolved = kept | seen, earlier | change.resolved
    resolved = {id: known for id, known in resolved.items() if id not in findings}
    since = dict.fromkeys(change.checks, change.today) | state.since
    after = AccountState(
        since=since,
        findings=findings,
        history=state.history,
        coverage=state.coverage | change.coverage,
        resolved=resolved,
        last_day=change.today,
        max_key_age=change.max_key_age,
        account_status=change.account_status,
    )
    return replace(after, history=append_today(after, change))


# --- history --------------------------------------------------------------------------

HISTORY_ENTRIES = 12  # entries kept in the history, one a day: a year of monthly audits


def append_today(after: AccountState, change: StateChange) -> tuple[HistoryEntry, ...]:
    """The history with an entry for today, whose numbers come from the state after the audit.

    What was not looked at today is counted as it was. On the day of a check's first audit,
    which is its `since`, nothing is new.
    """
    today = start_of_day(change.today)
    open_findings = {id: known for id, known in after.findings.items() if not known.accepted}
    severities = Counter(known.severity for known in open_findings.values())
    new = sum(
        known.first_seen == change.today != after.since.get(check_name_of(id))
        for id, known in (open_findings | after.resolved).items()
    )
    ages = [today - start_of_day(known.first_seen) for known in after.resolved.values()]
    entry = HistoryEntry(
        change.today,
        open={severity: severities[severity] for severity in SEVERITIES},
        not_checked=change.not_checked,
        new=new,
        days_open=tuple(max(0, age.days) for age in ages),
        remembered=len(open_findings.keys() - change.seen.keys()),
    )
    entries = {one.day: one for one in after.history} | {entry.day: entry}
    return tuple(entries[day] for day in sorted(entries))[-HISTORY_ENTRIES:]


def merge_history(reports: Collection[Report]) -> list[HistoryEntry]:
    """A history summed over accounts, for the last HISTORY_ENTRIES days in any of them.

    An account without an entry for a day counts as on the day before, and as one thing that is
    NOT CHECKED.
    """
    days = sorted({entry.day for report in reports for entry in report.history})
    merged = []
    for day in days[-HISTORY_ENTRIES:]:
        until = [[one for one in report.history if one.day <= day] for report in reports]
        latest = [entry_of_day(entries[-1], day) for entries in until if entries]
        entry = HistoryEntry(
            day,
            open={name: sum(one.open[name] for one in latest) for name in SEVERITIES},
            not_checked=sum(one.not_checked for one in latest),
            new=sum(one.new for one in latest),
            days_open=tuple(days for one in latest for days in one.days_open),
            remembered=sum(one.remembered for one in latest),
        )
        merged.append(entry)
    return merged


def entry_of_day(latest: HistoryEntry, day: str) -> HistoryEntry:
    """The latest entry if of this day; else its open findings as remembered, and 1 NOT CHECKED."""
    if latest.day == day:
        return latest
    return HistoryEntry(day, latest.open, not_checked=1, remembered=sum(latest.open.values()))


# --- controls of Security Hub ---------------------------------------------------------


def evaluate_control(result: CheckResult, name: str) -> ControlStatus:
    """The status of a control, from the rows of the check that decides it.

    It is FAILED if a row that is a finding names it, and PASSED only if everything that it asks
    about was read. An accepted row makes it ACCEPTED.
    """
    failed, accepted, undecided = set[str](), set[str](), set[str]()
    scope = result.check.controls[name].scope
    for row in result.rows:
        if is_target_lost(result.check, row, scope):
            undecided.add(row.status)
        for one in (one for one in row.control_findings if one.control == name):
            if one.status == NOT_CHECKED:
                undecided.add(ACCEPTED if row.status == ACCEPTED else NOT_CHECKED)
            else:
                (accepted if row.status == ACCEPTED else failed).add(one.resource)
    evaluated = result.evaluated_by_control[name]
    if scope and evaluated:  # the only target that decides the control was read: gaps do not count
        evaluated, undecided = 1, set()
    elif not result.complete or (scope and not undecided):
        undecided.add(NOT_CHECKED)
    decided = ACCEPTED if accepted or undecided else PASSED
    status = FAILED if failed else NOT_CHECKED if NOT_CHECKED in undecided else decided
    return ControlStatus(status, evaluated, len(failed | accepted))


def is_target_lost(definition: Check, row: Row, scope: str) -> bool:
    """Whether a row says a whole target is unread: the target `scope`, or if blank, any other.

    A row that is NOT CHECKED for another reason names the controls that it is about.
    """
    scopes = {control.scope for control in definition.controls.values()}
    lost = bool(row.error) and not row.item and not row.control_findings
    return lost and scope == (row.target if row.target in scopes else "")


def merge_statuses(reports: Iterable[Report]) -> dict[str, ControlStatus]:
    """The worst status of each control over active accounts, unopened too; numbers are added."""
    audited = [one for one in reports if one.account_status == ACTIVE]
    merged = {}
    for name in (name for definition in CHECKS for name in definition.controls):
        each = [one.controls[name] for one in audited if name in one.controls]
        statuses = [one.status for one in each] + [one.status for one in audited if one.error]
        if each:
            worst = min(statuses, key=CONTROL_STATUSES.index)
            evaluated, failed = sum(one.evaluated for one in each), sum(one.failed for one in each)
            merged[name] = ControlStatus(worst, evaluated, failed)
    return merged


def keep_rows(report: Report, wanted: Callable[[Row], bool]) -> Report:
    """The report with only those of its rows that are wanted."""
    results = [replace(one, rows=[*filter(wanted, one.rows)]) for one in report.results]
    return replace(report, results=results)


def drop_ok_rows(report: Report) -> Report:
    """The report without its OK rows: an overview does not show them, and they take memory."""
    return keep_rows(report, lambda row: row.status != OK)


def drop_repeated_rows(reports: Sequence[Report]) -> list[Report]:
    """The reports without rows about resources of another account that has its own report.

    What is shared, such as a security group, is shown to several accounts.
    """
    audited = {report.account for report in reports if report.results}

    def without_others(report: Report) -> Report:
        """The report without rows whose ARN names another one of the audited accounts."""
        others = audited - {report.account}
        return keep_rows(report, lambda row: not others & {*row.arn.split(":")[4:5]})

    return [*map(without_others, reports)]


# === storage ==========================================================================

ACCOUNT_FIELD = "{account}"  # stands for an account's number in the name of a file


def accounts_in(names: Iterable[str], template: str) -> list[str]:
    """The account numbers in the names that fit a template, in which {account} stands for one.

    >>> accounts_in(["s/123456789012.json", "s/overview.json"], "s/{account}.json")
    ['123456789012']
    """
    first, *others = map(re.escape, template.split(ACCOUNT_FIELD))
    pattern = re.compile(first + r"(\d{12})" + r"\1".join(others), re.ASCII)
    return sorted(match[1] for match in map(pattern.fullmatch, names) if match)


# --- files here -----------------------------------------------------------------------

STATE_LOCK = threading.Lock()  # for the state file, shared by accounts audited side by side
# Seconds to wait for the lock of a file, and seconds after which a message says that the run waits:
# a usual change takes less.
LOCK_PATIENCE, USUAL_LOCK_TIME = 60, 1
Tell = Callable[[str], None]  # prints a line for people
WRITABLE_KINDS = (stat.S_IFREG, stat.S_IFCHR, stat.S_IFIFO)
WRITTEN: list[str] = []  # names of files that this run has written, for a message if it is ended
WRITING: set[str] = set()  # names of files that are being written, for the same message


@contextlib.contextmanager
def writing(file: File) -> Iterator[None]:
    """Keeps a file's name in WRITING while it is written, and then in WRITTEN if that succeeds."""
    WRITING.add(name := str(file))
    try:
        yield
        WRITTEN.append(name)
    finally:
        WRITING.discard(name)


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine; a new one may be read by its owner only, an old one keeps its rights.

    Links are followed. A device or a pipe is written into, and so is a file that one of our
    streams writes into, such as /dev/stdout: a new file in its place would reach nobody.
    """

    path: Path
    create_folder: bool = False  # makes missing folders: the name has {account}, {date} or {time}
    numbered: bool = False  # adds a number to the name of the file if that name is taken
    tell: Tell = lambda _: None  # prints that this run waits for another run

    def __str__(self) -> str:
        return str(self.path)

    def absolute(self) -> str:
        """The absolute path; links are followed, except those that lead to a stream."""
        return str(self.path.absolute() if self.is_stream() else self.target)

    @property
    def target(self) -> Path:
        """The absolute path with all links followed."""
        return Path(os.path.realpath(self.path))

    def is_stream(self) -> bool:
        """Whether the path is a device, a pipe or one of our streams: then it is not replaced."""
        if not (found := file_status(self.path)):
            return False
        ours = filter(None, map(file_status, (1, 2)))
        return not stat.S_ISREG(found.st_mode) or any(os.path.samestat(found, one) for one in ours)

    def ensure_writable(self) -> None:
        """Raises CannotRun if the file cannot be written; called before the audit begins."""
        try:
            folder = self.target.parent
            for place in (self.path, folder / lock_name(self.target)):
                found = file_status(place)
                if found and stat.S_IFMT(found.st_mode) not in WRITABLE_KINDS:
                    raise CannotRun(f"{place} is a folder, a disk or a socket, not a file")
                if found and not os.access(place, os.W_OK):
                    raise CannotRun(f"{place} is write-protected")
            while self.create_folder and not folder.exists():
                folder = folder.parent
            for part in [str(self.path.absolute()), *self.target.parts, lock_name(self.target)]:
                with contextlib.suppress(FileNotFoundError):
                    (folder / part).stat()  # raises for a name too long, or a link to itself
            if not self.is_stream():
                with tempfile.TemporaryFile(dir=folder):
                    str(self.target).encode()  # raises if the path is not valid Unicode
        except (OSError, ValueError) as error:
            raise CannotRun(f"cannot write {self}: {error_text(error)}") from error

    def read(self) -> bytes:
        """The content of the file; OSError if there is none."""
        return self.path.read_bytes()

    def write(self, data: bytes) -> str:
        """Writes a file (`numbered`: a new one) or appends to a stream; gives the absolute path.

        A file is replaced in one move: after a crash it has the old content or the new one.
        """
        with writing(self):
            if not self.is_stream():
                return str(self._move_in(data))
            with self.path.open("ab") as stream:
                stream.write(data)
        return self.absolute()

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replaces the content, under a lock, by change(content), change(None) if there is none."""
        self._make_folder()
        with writing(self), locked(self.target, self.tell):
            self._move_in(change(self.read() if self.path.exists() else None))

    def list_json(self) -> list[LocalFile]:
        """The files *.json in this folder, or only this file; OSError if there is neither."""
        self.path.stat()
        found = sorted(self.path.glob("*.json")) if self.path.is_dir() else [self.path]
        return [LocalFile(path) for path in found]

    def accounts(self) -> list[str]:
        """The numbers that stand for {account} in the names of files; OSError without a folder."""
        name = str(self.path)
        folder = Path(f"{name.partition(ACCOUNT_FIELD)[0]}x").parent
        next(folder.iterdir(), None)  # raises if the folder cannot be read: glob would hide that
        pattern = glob.escape(str(self.path.relative_to(folder))).replace(ACCOUNT_FIELD, "*")
        return accounts_in(map(str, folder.glob(pattern)), name)

    def _make_folder(self) -> None:
        """Makes the missing folders of the file, if `create_folder` asks for it."""
        for folder in reversed(self.target.parents) if self.create_folder else ():
            folder.mkdir(0o700, exist_ok=True)

    def _move_in(self, data: bytes) -> Path:
        """Writes a temporary file, moves it to the target and returns the path, maybe numbered."""
        self._make_folder()
        target = self.target
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".security_check-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                keep_rights(handle, file_status(self.path))
            target = reserve_name(target) if self.numbered else target
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink()
            raise
        return target


def file_status(place: Path | int) -> os.stat_result | None:
    """The os.stat_result of a path (links are followed) or a descriptor; None if it has none."""
    with contextlib.suppress(OSError, ValueError):
        return os.stat(place)  # noqa: PTH116 - Path knows no descriptors
    return None


def reserve_name(path: Path, number: int = 1) -> Path:
    """Makes an empty file and returns its path: with a number added if the name is taken."""
    free = path.with_stem(f"{path.stem}-{number}") if number > 1 else path
    try:
        free.touch(0o600, exist_ok=False)
    except FileExistsError:
        return reserve_name(path, number + 1)
    return free


def keep_rights(handle: int, old: os.stat_result | None) -> None:
    """Tries to give an open file the group and mode of an old file, and as root also its owner."""
    if old and os.name == "posix":
        # if setting the old rights is refused, only the owner may read the file
        with contextlib.suppress(PermissionError):
            os.fchown(handle, old.st_uid if os.geteuid() == 0 else -1, old.st_gid)
            os.fchmod(handle, stat.S_IMODE(old.st_mode))


def lock_name(path: Path) -> str:
    """The name of the lock file that belongs to a file, in the same folder."""
    return f".{path.name}.lock"


@contextlib.contextmanager
def locked(path: Path, tell: Tell) -> Iterator[None]:
    """Keeps other threads and processes out of a file; on Windows only threads.

    OSError after LOCK_PATIENCE. An old lock file does not matter: a lock ends with its process.
    """
    with STATE_LOCK:
        try:
            import fcntl
        except ImportError:
            yield
            return
        lock = path.with_name(lock_name(path))
        with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)) as file:
            keep_rights(file.fileno(), file_status(path))
            wait_for_lock(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), lock, tell)
            yield


def wait_for_lock(take: Callable[[], None], lock: Path, tell: Tell) -> None:
    """Takes a lock, waiting until another run releases it; OSError after LOCK_PATIENCE."""
    began, told = time.monotonic(), False
    while True:
        try:
            return take()
        except BlockingIOError as error:
            waited = time.monotonic() - began
            if waited >= LOCK_PATIENCE:
                why = f"another run has held {lock} for {LOCK_PATIENCE} seconds"
                raise OSError(errno.ETIMEDOUT, why) from error
        if waited >= USUAL_LOCK_TIME and not told:
            tell(f"waiting up to {LOCK_PATIENCE} seconds for another run, which holds {lock}")
            told = True
        time.sleep(0.1)


# --- files in S3 ----------------------------------------------------------------------

S3_NAME = re.compile(r"(?i:s3)://([A-Za-z0-9._-]{3,63})(?:/(.*))?", re.DOTALL)
WRITE_CONFLICT_CODES = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
MAX_WRITE_TRIES = 50  # most tries to write the state: at each conflict another writer has finished
CONFLICT_PAUSE = 100  # most milliseconds of a random pause, so that two writers do not meet again


@dataclass(frozen=True)
class S3Object:
    """An object in S3, with the methods of LocalFile.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    aws: Account  # has the credentials that started the run, whatever account is audited
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def absolute(self) -> str:
        """The name of the object, as `s3://BUCKET/KEY`."""
        return str(self)

    def ensure_writable(self) -> None:
        """Raises CannotRun if the object cannot be written: a PUT beside it must be refused.

        S3 refuses it for another reason if the bucket is missing or writing is not allowed.
        """
        folder, slash, name = self.key.rpartition("/")
        probe = replace(self, key=f"{folder}{slash}.security_check-{name}")
        try:
            probe.write(b"", IfMatch='"no such tag"')
        except AwsCallFailed as failed:
            if failed.error.code in WRITE_CONFLICT_CODES:
                return
            raise CannotRun(f"cannot write {self}: {failed.error}") from failed
        with contextlib.suppress(AwsCallFailed):
            probe._ask("DeleteObject")
        raise CannotRun(f"cannot write {self}: this store ignores conditions, so it is not S3")

    def read(self) -> bytes:
        """The content of the object; FileNotFoundError if there is none."""
        return self._get()[0]

    def write(self, data: bytes, **condition: str) -> str:
        """Replaces the object, returns its name; AwsCallFailed, also if a condition is not met."""
        content_type = mimetypes.guess_type(self.key)[0] or "application/octet-stream"
        with writing(self):
            response = self._ask("PutObject", Body=data, ContentType=content_type, **condition)
            response["ETag"]  # raises if an answer has no ETag, so is not from S3
        return str(self)

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replaces the content by change(content or None); tries again if another run wrote it."""
        for tries_left in reversed(range(MAX_WRITE_TRIES)):
            before, condition = None, {"IfNoneMatch": "*"}
            with contextlib.suppress(FileNotFoundError):
                before, tag = self._get()
                condition = {"IfMatch": tag}
            try:
                self.write(change(before), **condition)
            except AwsCallFailed as failed:
                if failed.error.code not in WRITE_CONFLICT_CODES or not tries_left:
                    raise
                time.sleep(secrets.randbelow(CONFLICT_PAUSE) / 1000)
            else:
                return

    def list_json(self) -> list[S3Object]:
        """The objects *.json directly under this prefix; only this object if its name ends so."""
        if self.key.endswith(".json"):
            return [self]
        prefix = f"{self.key.rstrip('/')}/".lstrip("/")
        keys = self._keys(prefix, Delimiter="/")
        return [replace(self, key=key) for key in keys if key.endswith(".json")]

    def accounts(self) -> list[str]:
        """The numbers that stand for {account} in the names of objects."""
        return accounts_in(self._keys(self.key.partition(ACCOUNT_FIELD)[0]), self.key)

    def _keys(self, prefix: str, **limits: Any) -> list[str]:
        """The keys of the objects in the bucket that begin with a prefix."""
        where = {"Bucket": self.bucket, "Prefix": prefix, **limits}
        return [one["Key"] for one in self.aws.fetch("s3", "ListObjectsV2", "Contents", **where)]

    def _get(self) -> tuple[bytes, str]:
        """The content and the ETag; FileNotFoundError if there is no object."""
        response = self._ask("GetObject", absent={"NoSuchKey"})
        if not response:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return response["Body"], response["ETag"]

    def _ask(self, operation: str, **params: Any) -> Response:
        """The response of S3 to an operation on this object. Raises AwsCallFailed."""
        return self.aws.ask("s3", operation, Bucket=self.bucket, Key=self.key, **params)


# --- files in both places -------------------------------------------------------------

File = LocalFile | S3Object
FILE_ERRORS = (OSError, AwsCallFailed)  # errors of reading and writing a file


def error_text(error: Exception) -> str:
    """The reason, from an exception, why a file could not be read or written."""
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def read_errors_as_cannot_run(file: File) -> Iterator[None]:
    """In its `with` block, an error in reading the file is raised as CannotRun."""
    try:
        yield
    except (*FILE_ERRORS, UnicodeError) as error:
        raise CannotRun(f"cannot read {file}: {error_text(error)}") from error


def write_or_save_copy(file: File, data: bytes) -> str:
    """Writes results and returns their absolute name; else saves a copy and raises CannotRun."""
    try:
        return file.write(data)
    except FILE_ERRORS as error:
        save_copy_and_fail(data, file, error)


def save_copy_and_fail(data: bytes, file: File, error: Exception) -> NoReturn:
    """Saves results in a temporary folder, so that they are not lost, and raises CannotRun."""
    why = f"cannot write {file}: {error_text(error)}"
    try:
        folder = Path(tempfile.mkdtemp(prefix="security_check-"))
        # the name is cut, because names in S3 may be longer than those of files here
        copy = LocalFile(folder / Path(file.absolute()).name[-60:])
        copy.write(data)
    except OSError:
        raise CannotRun(f"{why}, and no copy elsewhere: the results are lost") from error
    raise CannotRun(f"{why}; the results are in {copy}") from error


# --- the accept file ------------------------------------------------------------------

ACCEPT_LINE = re.compile(r"(\d{12}/)?(\S+)(?:\s+until\s+(\S+))?\s+#\s*(\S.*)")


def read_accept_file(file: File) -> list[Acceptance]:
    """The acceptances in an accept file; CannotRun if it cannot be read or a line is wrong."""
    with read_errors_as_cannot_run(file):
        text = file.read().decode("utf-8-sig")
    return parse_accept_file(text, str(file))


def parse_accept_file(text: str, name: str) -> list[Acceptance]:
    """The acceptances in lines `ID [until YYYY-MM-DD] # reason`; CannotRun for a wrong line.

    The ID may be a glob. Blank lines and those that begin with # are skipped. `name` is for errors.
    """
    found = []
    for number, line in enumerate(map(str.strip, re.split(r"\r\n|\r|\n", text)), 1):
        if not line or line.startswith("#"):
            continue
        if not (match := ACCEPT_LINE.fullmatch(line)):
            raise CannotRun(f"{name}, line {number}: not `ID [until YYYY-MM-DD] # reason`")
        account, pattern, until, reason = match.groups("")
        try:
            start_of_day(until or "2000-01-01")
        except ValueError as error:
            raise CannotRun(f"{name}, line {number}: {error}") from error
        found.append(Acceptance(account + current_id(pattern), until, reason))
    return found


def current_id(id: str) -> str:
    """The ID or pattern in today's form: version 1's source or `not-enabled` at its end is cut.

    >>> current_id("security-groups/eu-west-1/sg-1/TCP/22/0.0.0.0/0")
    'security-groups/eu-west-1/sg-1/TCP/22'
    """
    parts = id.split("/")
    not_enabled = parts[0] == "cloudtrail" and parts[2:] == ["not-enabled"]
    length = 5 if parts[0] == "security-groups" else 2 if not_enabled else len(parts)
    return id if parts[-1] == NOT_CHECKED_END else "/".join(parts[:length])


# --- the report as JSON ---------------------------------------------------------------

REPORT_SCHEMA = 5
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
MAX_NUMBER = 10**15  # numbers from here on are refused: not exact in all readers, nor .xls


def encode(value: Any) -> Any:
    """A report, or a part of it, as data for JSON with fields by name (schema: tests/deploy)."""
    if value is None or type(value) in (str, int, bool, float):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: encode(one) for name, one in value.items()}
    if isinstance(value, CheckResult):
        return encode_result(value)
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [*map(encode, value)]
    kind: Any = type(value)
    fields = {name: encode(getattr(value, name)) for name in reported_fields(kind)}
    if isinstance(value, Report):
        levels = Counter(row.level for row in value.rows())
        counts = {level: levels[level] for level in ROW_ORDER}
        return {"exit_code": value.exit_code(), "counts": counts, **fields}
    return fields


def encode_result(result: CheckResult) -> dict[str, Any]:
    """A result as data for JSON; its rows have ID, status and controls too, for other programs."""
    rows = [
        {
            "id": result.check.id(row),
            "status": row.status,
            "result": row.result,
            "control": row.control,
            "controls": row.controls,
            **encode(row),
            "dates": [name for name, cell in row.cells.items() if isinstance(cell, datetime)],
        }
        for row in result.rows
    ]
    return {
        "check": result.check.name,
        "title": result.check.title,
        "complete": result.complete,
        "evaluated": result.evaluated,
        "rows": rows,
    }


@functools.cache
def reported_fields(kind: Any) -> dict[str, Any]:
    """The type of each field of a class, by name; no field is left out."""
    return get_type_hints(kind)


Decoder = Callable[[Any], Any]  # a function that makes a value from JSON data


@functools.cache
def decoder(kind: Any) -> Decoder:
    """The function that decodes JSON data to this type; on bad data it raises one of MALFORMED."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in DECODERS:
        return DECODERS[kind]
    if origin is UnionType:  # a union such as AwsError | None, list[str] | AwsError, or a cell
        choices = [(json_types(one), decoder(one)) for one in arguments]
        return functools.partial(decode_choice, choices)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return functools.partial(decode_fields, kind)
    if origin is dict:
        decode = decoder(arguments[1])
        return lambda data: {name: decode(one) for name, one in data.items()}
    if origin in (list, tuple, frozenset):
        decode = decoder(arguments[0])
        return lambda data: origin(map(decode, data))
    return functools.partial(require_type, json_types(kind))


def decode_choice(choices: Any, data: Any) -> Any:
    """The value, decoded by the first choice for data of this type; ValueError if none fits."""
    decode, *_ = (decode for types, decode in choices if type(data) in types)
    return decode(data)


def require_type(types: Collection[type], data: Any) -> Any:
    """The data itself; TypeError for another type or a huge number, ValueError for bad Unicode."""
    if type(data) not in types or (isinstance(data, (int, float)) and not abs(data) < MAX_NUMBER):
        raise TypeError(f"{data!r} is not of {types}")
    if isinstance(data, str):
        data.encode()  # raises for half of a surrogate pair, which no file can hold
    return data


def json_types(kind: Any) -> tuple[type, ...]:
    """The types that json.loads makes of a type; none for datetime: in a union, it stays text."""
    if is_dataclass(kind):
        return (dict,)
    return {float: (int, float), datetime: ()}.get(kind, (get_origin(kind) or kind,))


def decode_fields(kind: Any, data: dict[str, Any]) -> Any:
    """A dataclass or NamedTuple from a JSON object; KeyError if a field is missing."""
    fields = reported_fields(kind).items()
    return kind(**{name: decoder(hint)(data[name]) for name, hint in fields})


def decode_date(data: str) -> datetime:
    """The datetime, in UTC, in a text in ISO format."""
    return datetime.fromisoformat(data).astimezone(timezone.utc)


def decode_row(data: dict[str, Any]) -> Row:
    """A row from a JSON object; the cells that its `dates` name become datetimes again."""
    row: Row = decode_fields(Row, data)
    dates: dict[str, Cell] = {name: decode_date(data["cells"][name]) for name in data["dates"]}
    return replace(row, cells=row.cells | dates) if dates else row


def decode_result(data: dict[str, Any]) -> CheckResult:
    """A check's result from a JSON object; ValueError if this script has no such check."""
    (definition,) = (one for one in CHECKS if one.name == data["check"])
    complete = require_type((bool,), data["complete"])
    evaluated = require_type((int,), data["evaluated"])
    return CheckResult(definition, [*map(decode_row, data["rows"])], complete, evaluated)


DECODERS: dict[Any, Decoder] = {datetime: decode_date, Row: decode_row, CheckResult: decode_result}


def to_json(reports: Iterable[Report], merged: bool = False) -> bytes:
    """The JSON report, an entry for each account; `merged` says that it repeats other reports."""
    controls = {name: control for one in CHECKS for name, control in one.controls.items()}
    document = {
        "schema": REPORT_SCHEMA,
        "version": __version__,
        "merged": merged,
        "controls": encode(controls),
        "accounts": encode([*reports]),
    }
    return json.dumps(document, indent=1).encode()


def reports_from_json(data: bytes, file: File) -> list[Report]:
    """The reports in a JSON file, one an entry; of a damaged entry a report with only an error.

    An entry is damaged unless it is exactly what this script would write. A merged document
    gives no reports: it repeats what others say. CannotRun if all are damaged.
    """
    try:
        document = json.loads(data)
        if (version := document["schema"]) != REPORT_SCHEMA:
            raise CannotRun(f"{file} is of version {version}, this script knows {REPORT_SCHEMA}")
        entries: list[Any] = [] if document["merged"] else [*document["accounts"]]
    except MALFORMED as error:
        raise CannotRun(f"{file} is damaged, or no report of this script") from error
    reports = [report_or_none(entry) for entry in entries]
    if entries and not any(reports):
        raise CannotRun(f"{file} is damaged, or no report of this script")
    why = AwsError("NotMerged", detail=f"its report in {file} is damaged")
    return [
        report or Report(account_of(entry), utc_now(), name=str(file), error=why)
        for entry, report in zip(entries, reports, strict=True)
    ]


def account_of(entry: Any) -> str:
    """The account number in a damaged report; blank if it has no valid one."""
    number = entry.get("account") if isinstance(entry, dict) else ""
    return number if isinstance(number, str) and re.fullmatch(r"\d{12}", number) else ""


def report_or_none(entry: Any) -> Report | None:
    """The report in an entry of a JSON report; None unless this script would write the same."""
    with contextlib.suppress(*MALFORMED):
        report: Report = decode_fields(Report, entry)
        check_values(report)
        return report if encode(report) == entry else None
    return None


def check_history(history: Iterable[HistoryEntry]) -> None:
    """Raises ValueError or KeyError if a history has a bad day or number, or lacks a severity."""
    for entry in history:
        start_of_day(entry.day)
        numbers = [entry.not_checked, entry.new, entry.remembered, *entry.days_open]
        if min(*numbers, 0, *(entry.open[severity] for severity in SEVERITIES)) < 0:
            raise ValueError("a negative number")


def check_values(report: Report) -> None:
    """Raises ValueError or KeyError for impossible values, such as an unknown severity."""
    rows, resolved = report.rows(), (report.resolved or {}).values()
    check_history(report.history)
    for day in (*(row.first_seen for row in rows if row.first_seen), *(one[0] for one in resolved)):
        start_of_day(day)
    known_controls = {name for one in CHECKS for name in one.controls}
    named = [one for row in rows for one in row.control_findings]
    arns = filter(None, (report.auditor_arn, *(row.arn for row in rows)))
    severities = {*(row.severity for row in rows), *(one.severity for one in resolved)}
    statuses = {*(one.status for one in named), *(one.status for one in report.controls.values())}
    possible = (
        severities <= {"", *SEVERITIES}
        and statuses <= {*CONTROL_STATUSES}
        and {*report.controls, *(one.control for one in named)} <= known_controls
        and all(arn.count(":") >= 5 for arn in arns)
        and len(report.home_region) <= 40
        and 0 <= report.seconds < 1e9
        and (report.results or report.error or report.account_status != ACTIVE)
    )
    # an unknown --fail-on needs no check: `encode` calls Report.exit_code, which raises for it
    if not possible:
        raise ValueError("an impossible value")


# --- the state file -------------------------------------------------------------------

STATE_SCHEMA = 2


def read_state_file(file: File) -> dict[str, Any]:
    """The accounts in a state file by number, not yet decoded; empty if there is no file."""
    with read_errors_as_cannot_run(file), contextlib.suppress(FileNotFoundError):
        return state_accounts(file.read(), file)
    return {}


def state_accounts(data: bytes, file: File) -> dict[str, Any]:
    """The accounts in state data, undecoded, upgraded from schema 1; CannotRun if unusable."""
    try:
        document = json.loads(data)
        accounts: dict[str, Any] = document["accounts"]
        if (version := document["schema"]) not in (1, STATE_SCHEMA):
            raise CannotRun(f"{file} is of version {version}, this script knows {STATE_SCHEMA}")
        if version == 1:
            history = document.get("history", {})  # the oldest state files have no history
            accounts = {
                one: upgrade_account(accounts.get(one, {}), history.get(one, ()))
                for one in accounts.keys() | history.keys()
            }
        accounts.keys()
    except MALFORMED as error:
        raise CannotRun(f"{file} is damaged or no state file: repair or remove it") from error
    return accounts


def upgrade_account(
    findings: dict[str, dict[str, str]], history: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """An account of schema 1 as JSON data of today's schema: severities and extents are blank."""
    known: dict[str, KnownFinding] = {}
    for id, entry in findings.items():
        now, first_seen = current_id(id), entry["first_seen"]
        before = known.get(now, KnownFinding(first_seen, entry["result"], id.split("/")[1]))
        known[now] = before._replace(first_seen=min(before.first_seen, first_seen))
    names = {"found": "open", "stood": "days_open"}
    entries = [{names.get(name, name): entry[name] for name in entry} for entry in history]
    since = dict.fromkeys((one.name for one in CHECKS), "2000-01-01")
    state: dict[str, Any] = encode(AccountState(since, known))
    defaults = {"not_checked": 0, "new": 0, "days_open": [], "remembered": 0}
    return state | {"history": [defaults | entry for entry in entries]}


def account_state(accounts: dict[str, Any], account: str, file: File) -> AccountState:
    """The state of one account; empty if the file has none, CannotRun if it is damaged."""
    if account not in accounts:
        return AccountState()
    try:
        state: AccountState = decode_fields(AccountState, accounts[account])
        check_history(state.history)
        for known in (*state.findings.values(), *state.resolved.values()):
            start_of_day(known.first_seen)
            rank_of(known.severity)
        for one in state.coverage.values():
            for severity in (one.worst, *(found.severity for found in one.findings.values())):
                rank_of(severity)
    except MALFORMED as error:
        why = f"{file} is damaged or no state file: repair or remove it"
        raise CannotRun(f"{why} (account {account})") from error
    return state


def write_state_file(file: File, changes: dict[str, StateChange]) -> None:
    """Applies changes, by account, to the file; if that fails, saves a copy, raises CannotRun."""
    data = b""

    def changed(before: bytes | None) -> bytes:
        """The file's new content; `before` is its old content, or None if there was none."""
        nonlocal data
        accounts = state_accounts(before, file) if before else {}
        for account, change in changes.items():
            accounts[account] = encode(apply_change(account_state(accounts, account, file), change))
        data = json.dumps({"schema": STATE_SCHEMA, "accounts": accounts}, indent=1).encode()
        return data

    try:
        file.update(changed)
    except FILE_ERRORS as error:
        save_copy_and_fail(data or changed(None), file, error)


# === output ===========================================================================

STATUS_HELP = {
    FINDING: "A person should act.",
    NOT_CHECKED: "AWS did not let the script look. Nothing is known of what is there.",
    ACCEPTED: "A finding, or something NOT CHECKED, that somebody decided to live with, and why.",
    OK: "Evaluated, nothing wrong.",
}

# --- rows on their sheets -------------------------------------------------------------


class SheetRow(NamedTuple):
    """A row on its sheet; `position` counts from 0 at the top."""

    report: Report
    check: Check
    row: Row
    position: int

    def link(self) -> str:
        """The link to the row in the workbook: `#'SHEET'!A5`."""
        part, line = divmod(self.position, MAX_ROWS - HEADER_ROWS)
        return f"#'{sheet_title(self.check.title, part)}'!A{HEADER_ROWS + 1 + line}"


Sheets = dict[Check, list[SheetRow]]


def rows_by_check(reports: Iterable[Report], with_ok: bool = True) -> Sheets:
    """The rows of each check, the most serious first; OK rows are left out without `with_ok`."""
    found: dict[Check, list[tuple[Report, Row]]] = defaultdict(list)
    for report in reports:
        for result in report.results:
            shown = (row for row in result.rows if with_ok or row.status != OK)
            found[result.check] += [(report, row) for row in shown]
    for pairs in found.values():
        pairs.sort(key=lambda pair: seriousness_key(pair[1]))
    return {
        definition: [SheetRow(report, definition, row, n) for n, (report, row) in enumerate(pairs)]
        for definition, pairs in found.items()
    }


def seriousness_key(row: Row) -> tuple[int, int]:
    """The sort key of a row, smaller if more serious: by level, then by the greatest priority."""
    return ROW_ORDER.index(row.level), -row.priority


def ranked(sheets: Sheets, status: str) -> list[SheetRow]:
    """The rows of all sheets that have this status, the most serious first."""
    lines = [line for sheet in sheets.values() for line in sheet if line.row.status == status]
    return sorted(lines, key=lambda line: seriousness_key(line.row))


def tally(rows: Iterable[Row], with_new: bool) -> dict[str, int]:
    """The number of findings by severity, then New (if `with_new`), ACCEPTED and NOT CHECKED."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update([row.level, *(["New"] if row.new and row.status == FINDING else [])])
    headings = (*SEVERITIES, *(["New"] if with_new else []), ACCEPTED, NOT_CHECKED)
    return {heading: counts[heading] for heading in headings}


def check_tally(overview: Overview, definition: Check, lines: Iterable[SheetRow]) -> dict[str, int]:
    """The number of resources that a check evaluated, followed by the tally of its rows."""
    results = (result for report in overview.reports for result in report.results)
    evaluated = sum(result.evaluated for result in results if result.check is definition)
    return {"Evaluated": evaluated, **tally((line.row for line in lines), overview.with_state)}


# --- sentences ------------------------------------------------------------------------


def describe_result(row: Row) -> str:
    """The text of the column Result: the finding or error, its change, and its acceptance."""
    mark = f"{row.change}: " if row.change in (NEW, WORSE) and row.status == FINDING else ""
    accepted = describe_acceptance(row.acceptance, row.acceptance_ended)
    return f"{mark}{row.result}{describe_change(row)}{accepted}"


def describe_change(row: Row) -> str:
    """The text ` (was: ...)` with the last run's sentence, if worse or better; else blank."""
    return f" (was: {row.was})" if row.was and row.status == FINDING else ""


def describe_acceptance(acceptance: Acceptance | None, ended: str = "") -> str:
    """The text ` (accepted until 2030-12-31: reason)`, or why acceptance ended; blank for None."""
    if not acceptance:
        return ""
    until = f"until {acceptance.until}: " if acceptance.until else ""
    if ended == "expired":
        return f" (acceptance expired, {until}{acceptance.reason})"
    if ended:
        return f" (`{acceptance.pattern}` {ended}: {acceptance.reason})"
    return f" (accepted {until}{acceptance.reason})"


def describe_resource(group: Sequence[SheetRow], multi_account: bool) -> str:
    """A line on one resource: the first two things found, `and more`, its names, its acceptance.

    `bastion: lets the whole Internet reach SSH (22) and RDP (3389) (sg-1, eu-west-1, 2 rules)`.
    """
    report, definition, row, _ = group[0]
    items: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in group:
        before, item, after = line.row.message
        items[before, after].append(item)
    clauses = [f"{before}{in_words(found)}{after}" for (before, after), found in items.items()]
    text = "; ".join([*clauses[:2], *(["and more"] if clauses[2:] else [])])
    name, *others = definition.resource_names(row) or [""]
    others += [report.account, report.name] if multi_account else []
    others += [counted(len(group), definition.row_noun)] if len(group) > 1 else []
    behind = ", ".join(filter(None, others))
    subject = f"{name}: {text}" if name else text[:1].upper() + text[1:]
    subject += f" ({behind})" if behind else ""
    subject += describe_change(row)
    return subject + describe_acceptance(row.acceptance, row.acceptance_ended)


def needed_permission(error: AwsError | None) -> str:
    """The missing permission of a denied call, ` (needs iam:ListUsers)`; blank if not denied."""
    if not error or not error.missing_permission:
        return ""
    trust = ", and a trust policy that lets us in" if error.operation == "AssumeRole" else ""
    return f" (needs {error.missing_permission}{trust})"


def headline(overview: Overview) -> str:
    """A line: findings (new, worse, resolved, with --state), NOT CHECKED, accepted gaps, limits."""
    reports = overview.reports
    found = [row for report in reports for row in report.rows(FINDING)]
    findings = counted(len(found), "finding")
    if overview.with_state:
        resolved = sum(len(report.resolved or ()) for report in reports)
        new, worse = (sum(row.change == one for row in found) for one in (NEW, WORSE))
        changes = [f"{new:,} new", *([f"{worse:,} worse"] if worse else [])]
        findings += f" ({', '.join(changes)}, {resolved:,} resolved)"
    errors = sum(len(report.errors()) for report in reports)
    accepted = sum(bool(row.error) for report in reports for row in report.rows(ACCEPTED))
    accepted += sum(bool(report.error_acceptance) for report in reports)
    parts = [
        *([f"{errors:,} {NOT_CHECKED}"] if errors else []),
        *([f"{accepted:,} {NOT_CHECKED} but accepted"] if accepted else []),
        *([f"limited to: {limits}"] if (limits := describe_limits(overview)) else []),
    ]
    return ", ".join([findings, *(parts or ["everything was checked"])])


class QuestionPart(NamedTuple):
    """A part of what a run was asked."""

    text: str
    limited: bool  # whether this part of the question limits the audit
    names: Sequence[str] = ()


def question_parts(overview: Overview) -> list[QuestionPart]:
    """The checks, regions, key age and accounts asked for; if reports differ, the most limited."""
    asked = [report.question for report in overview.reports if report.question]
    if not asked:
        return []
    checks = min((question.checks for question in asked), key=len)
    everything = len(checks) == len(CHECKS)
    number = f"all {len(CHECKS):,}" if everything else f"{len(checks):,} of {len(CHECKS):,}"
    age = max(question.max_key_age for question in asked)
    parts = [
        QuestionPart(f"{number} checks", not everything, checks),
        regions_asked(overview),
        QuestionPart(f"access keys older than {counted(age, 'day')}", age > MAX_KEY_AGE),
    ]
    for word, number in (("named", "accounts"), ("left out", "excluded_accounts")):
        if names := sorted({name for question in asked for name in getattr(question, number)}):
            parts.append(QuestionPart(f"{counted(len(names), 'account')} {word}", True, names))
    return parts


def regions_asked(overview: Overview) -> QuestionPart:
    """The regions that the account with the fewest was asked for; `all regions` without limits."""
    parts = []
    for report in overview.reports:
        if question := report.question:
            names = report.regions if isinstance(report.regions, list) else question.regions
            limited = bool(question.regions or question.excluded_regions)
            known = f" of {report.enabled_regions:,}" if report.enabled_regions else ""
            text = f"{len(names):,}{known} regions" if limited else "all regions"
            parts.append(QuestionPart(text, limited, names))
    return min(parts, key=lambda part: (not part.limited, len(part.names)))


def describe_limits(overview: Overview) -> str:
    """The limits of the audit: `1 of 6 checks, 1 of 17 regions`; blank if there were none."""
    return ", ".join(part.text for part in question_parts(overview) if part.limited)


def describe_question(overview: Overview) -> str:
    """A sentence on all that was asked, then the versions of the script and its rules."""
    parts = [
        f"{part.text} ({in_words(part.names)})" if part.limited and part.names else part.text
        for part in question_parts(overview)
    ]
    text = ", ".join(parts) or "no account could be audited"
    return f"{text[:1].upper()}{text[1:]}. {describe_version(overview)}"


def describe_version(overview: Overview) -> str:
    """The versions of script and rules: `security_check.py 2.0, rules of 2026-11-25`."""
    asked = [report.question for report in overview.reports if report.question]
    versions = in_words(sorted({one.version for one in asked} or {__version__}))
    rules = in_words(sorted({one.rules for one in asked} or {RULES_DATE}))
    return f"security_check.py {versions}, rules of {rules}"


def describe_accounts(reports: list[Report]) -> str:
    """The number of accounts audited, and of the others by status: `8 audited, 1 LEFT`."""
    reasons = Counter(one.status for one in reports)
    audited = f"{reasons.pop(ACTIVE, 0):,} audited"
    return ", ".join([audited, *(f"{number:,} {reason}" for reason, number in reasons.items())])


def describe_outcome(report: Report) -> str:
    """The outcome of an account's audit, such as `audited in 9 s`, or why it failed."""
    if report.error:
        accepted = describe_acceptance(report.error_acceptance)
        return f"{report.error}{needed_permission(report.error)}{accepted}"
    if report.file_errors:
        return "; ".join(report.file_errors)
    if report.account_status != ACTIVE:
        return f"{report.account_status}: cannot be audited"
    how = "credentials expired after" if report.credentials_expired() else "audited in"
    return f"{how} {report.seconds:.0f} s"


def describe_scope(overview: Overview) -> str:
    """The audited account, `AWS account 123456789012 (alias)`, or several accounts in words."""
    if overview.multi_account:
        return overview.scope
    (report,) = overview.reports
    aliases = f" ({', '.join(report.aliases)})" if report.aliases else ""
    return f"AWS account {report.account}{aliases}"


def run_details(overview: Overview) -> dict[str, str]:
    """The section `The audit` of the Summary, as text by label: account, auditor, time."""
    started, duration = f"{overview.started:%Y-%m-%d %H:%M} UTC", f"{overview.seconds:.0f} s"
    when = {"Started": started, "Duration": duration}
    if overview.multi_account:
        accounts = {"Accounts": describe_accounts(overview.reports), "Scope": overview.scope}
        return accounts | {"Audited by": overview.auditor_arn} | when
    (report,) = overview.reports
    account = {"Account": report.account, "Alias": ", ".join(report.aliases)}
    return account | {"Audited by": report.auditor_arn} | when


def question_details(overview: Overview) -> dict[str, str]:
    """The section `What was asked`, as text by label: each check, regions, key age and so on."""
    asked = [report.question for report in overview.reports if report.question]
    if not asked:
        return {"Version": describe_version(overview)}
    checks, where, keys, *accounts = question_parts(overview)
    names = where.text if where.limited else f"all {len(where.names):,} that are enabled"
    named = [f"{part.text}: {', '.join(part.names)}" for part in accounts]
    least = min((question.fail_on for question in asked), key=SEVERITIES.index)
    return {
        **{one.title: one.coverage if one.name in checks.names else "not asked" for one in CHECKS},
        "Regions": f"{names}: {', '.join(where.names)}",
        "Key age": f"{keys.text} are findings",
        **({"Accounts": "; ".join(named)} if named else {}),
        **({"Exit code": f"1 only for findings of {least} or worse"} if least != LOW else {}),
        "Version": describe_version(overview),
    }


# --- history --------------------------------------------------------------------------

BAR_BLOCKS = " ▏▎▍▌▋▊▉█"


def bar(number: int, most: int, places: int) -> str:
    """A bar of block characters for a number: the number `most` would fill all places.

    >>> bar(6, 20, 4)
    '█▎'
    """
    full, eighths = divmod(round(8 * places * number / max(most, 1)), 8)
    return BAR_BLOCKS[8] * full + (BAR_BLOCKS[eighths] if eighths else "")


def bars(history: Sequence[HistoryEntry], places: int) -> list[str]:
    """The bars for the open findings of each day, all in one scale: the most fill all places."""
    totals = [sum(entry.open.values()) for entry in history]
    return [bar(total, max(totals), places) for total in totals]


def describe_days_open(history: Iterable[HistoryEntry]) -> str:
    """The sentence on how long (median) resolved findings were open; blank if none was resolved."""
    days_open = sorted(number for entry in history for number in entry.days_open)
    if not days_open:
        return ""
    median = counted(days_open[(len(days_open) - 1) // 2], "day")
    if len(days_open) == 1:
        return f"The finding that was resolved had been open for {median}"
    number = f"{len(days_open):,}"
    return f"Half of the {number} findings that were resolved had been open for {median} or less"


def last_two_bars(history: Sequence[HistoryEntry], began: str) -> list[str]:
    """Two lines with bars, of the last audit and of this one; none without an entry of both.

    `began` is the day on which this one began; some of its accounts may be of the day after.
    """
    lines = [*zip(history, bars(history, 40), strict=True)][-2:]
    return [
        f"{entry.day}  {counted(sum(entry.open.values()), 'finding'):>15}  {blocks}"
        for entry, blocks in (lines if len(lines) > 1 and history[-1].day >= began else ())
    ]


# --- lines of the terminal and the Summary --------------------------------------------


class SummaryLine(NamedTuple):
    """A line of a section of the Summary, or of the terminal."""

    label: str
    text: str
    link: str = ""
    command: str = ""


def finding_lines(lines: Iterable[SheetRow], overview: Overview) -> Iterator[SummaryLine]:
    """A line for each resource, with the remediation command of its first finding."""
    groups: dict[tuple[Any, ...], list[SheetRow]] = defaultdict(list)
    for line in lines:
        names = line.check.resource_names(line.row)
        groups[(line.check, line.report.account, *names)].append(line)
    for group in groups.values():
        first, text = group[0], describe_resource(group, overview.multi_account)
        yield SummaryLine(first.row.severity, text, first.link(), first.row.remediation.command)


def worst_lines(lines: Iterable[SheetRow], overview: Overview) -> Iterator[SummaryLine]:
    """A line for each resource with findings; with several accounts, for each kind of finding."""
    if not overview.multi_account:
        yield from finding_lines(lines, overview)
        return
    groups: dict[tuple[str, ...], list[SheetRow]] = defaultdict(list)
    for line in lines:
        kind = line.row.kind or line.row.result
        groups[line.check.name, line.row.severity, kind].append(line)
    for (_, severity, kind), group in groups.items():
        text = f"{kind[:1].upper()}{kind[1:]}: {describe_spread(group)}"
        yield SummaryLine(severity, text, group[0].link())


def describe_spread(group: Sequence[SheetRow]) -> str:
    """The number of rows and accounts, `41 rules in 23 accounts`; a single account is named."""
    accounts = {f"{line.report.account} {line.report.name}".strip() for line in group}
    where = f"{len(accounts):,} accounts" if len(accounts) > 1 else accounts.pop()
    return f"{counted(len(group), group[0].check.row_noun)} in {where}"


def gap_lines(overview: Overview, sheets: Sheets) -> Iterator[SummaryLine]:
    """A line for each account not opened or with unwritten files, then for each check's errors."""
    for number, report in enumerate(overview.reports, HEADER_ROWS + 1):
        if report.status == NOT_CHECKED or report.file_errors:
            text = f"{report.account} {report.name}: {describe_outcome(report)}".strip()
            yield SummaryLine(NOT_CHECKED, text, f"#Accounts!A{number}")
    groups: dict[tuple[str, str], list[SheetRow]] = defaultdict(list)
    for line in ranked(sheets, NOT_CHECKED):
        error = f"{describe_result(line.row)}{needed_permission(line.row.error)}"
        groups[line.check.title, error].append(line)
    for (title, error), group in groups.items():
        text = f"{title}: {error}: {describe_gap(group, overview)}"
        yield SummaryLine(NOT_CHECKED, text, group[0].link())


def gap_section(overview: Overview, sheets: Sheets, most: int) -> list[SummaryLine]:
    """The first lines on what is NOT CHECKED, then the policy statement that would help."""
    return [*first_of(gap_lines(overview, sheets), most), *policy_line(overview)]


def first_of(lines: Iterable[SummaryLine], most: int) -> list[SummaryLine]:
    """The first `most` lines, then `and N more`; instead of `and 1 more`, the line itself."""
    first = [*lines]
    if len(first) > most + 1:
        first[most:] = [SummaryLine("", f"and {len(first) - most:,} more")]
    return first


def describe_gap(group: Sequence[SheetRow], overview: Overview) -> str:
    """The IDs of what was not read, without `/not-checked`; in an overview also the accounts."""
    text = in_words(line.row.id.removesuffix(f"/{NOT_CHECKED_END}") for line in group)
    accounts = (f"{line.report.account} {line.report.name}".strip() for line in group)
    return f"{text} in {in_words(accounts)}" if overview.multi_account else text


def policy_line(overview: Overview) -> list[SummaryLine]:
    """A line with the policy statement that denied calls need; empty if none was denied."""
    errors = (error for report in overview.reports for error in report.errors())
    actions = sorted({one.missing_permission for one in errors if one.missing_permission})
    statement = json.dumps({"Effect": "Allow", "Action": actions, "Resource": "*"})
    return [SummaryLine("Remediation", f"Add to the policy: {statement}")] if actions else []


# --- terminal -------------------------------------------------------------------------

COLUMNS_OF_TERMINAL = 80
MAX_ACCOUNT_LINES = 20  # most accounts shown on the terminal, so that all stays on one screen
MAX_WORST, MAX_LINES = 5, 10  # most lines of the terminal's section Worst, and of any other
ANSI = {CRITICAL: "1;31", HIGH: "31", "New": "1", NOT_CHECKED: "7"}  # colour codes of terminals


def terminal_text(overview: Overview, colour: bool = False, quiet: bool = False) -> str:
    """The terminal's text; with `quiet` and an earlier state, news first and no section Worst.

    The workbook's path is last, so that it can be copied.
    """
    sheets = rows_by_check(overview.reports)
    table = account_table if overview.multi_account else check_table
    findings = ranked(sheets, FINDING)
    numbers = [*table(overview, sheets, colour), ""]
    worst = finding_text("Worst", worst_lines(findings, overview), MAX_WORST)
    news = news_text(overview, sheets, findings)
    begin = [f"{describe_scope(overview)}, {overview.started:%Y-%m-%d}", ""]
    end = [*fold(describe_question(overview), ""), *filter(None, [overview.path])]
    total = [headline(overview)]
    total += last_two_bars(merge_history(overview.reports), f"{overview.started:%Y-%m-%d}")
    total += first_run_text(overview)
    compared = overview.with_state and not any(report.first_run for report in overview.reports)
    if quiet and compared:
        return "\n".join([*begin, *total, *news, "", *numbers, *end])
    return "\n".join([*begin, *numbers, *total, *worst, *news, *end])


def news_text(overview: Overview, sheets: Sheets, findings: list[SheetRow]) -> list[str]:
    """The terminal's sections Worse, New, Not checked, Acceptance ended, Resolved, as lines."""
    worse, new = ([line for line in findings if line.row.change == one] for one in (WORSE, NEW))
    ended = [line for line in findings if line.row.acceptance_ended]
    gaps = gap_section(overview, sheets, MAX_LINES - len(policy_line(overview)) - 1)
    return [
        *finding_text("Worse", finding_lines(worse, overview), MAX_LINES),
        *finding_text("New", finding_lines(new, overview), MAX_LINES),
        *first_lines("Not checked", [line.text for line in gaps], MAX_LINES),
        *finding_text("Acceptance ended", finding_lines(ended, overview), MAX_LINES),
        *first_lines("Resolved", resolved_texts(overview), MAX_LINES),
    ]


def first_run_text(overview: Overview) -> list[str]:
    """The sentence that a first run with a state has nothing to compare with; empty later."""
    first = sum(report.first_run for report in overview.reports)
    whose = f" of {counted(first, 'account')}" if overview.multi_account else ""
    return fold(f"First run{whose} with this state: nothing to compare with.", "") if first else []


def resolved_texts(overview: Overview) -> list[str]:
    """A text for each finding that was resolved since last time, with its ID."""
    return [
        f"{known.result} ({f'{report.account}/' if overview.multi_account else ''}{id})"
        for report in overview.reports
        for id, known in (report.resolved or {}).items()
    ]


def finding_text(title: str, lines: Iterable[SummaryLine], most: int) -> list[str]:
    """The first `most` findings under a title, as lines of the terminal, then `and 3 more`."""
    return first_lines(title, [f"{line.label:8}  {line.text}" for line in lines], most)


def first_lines(title: str, lines: list[str], most: int) -> list[str]:
    """The first `most` lines under a title, folded, then `and 3 more`; empty without lines."""
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    folded = (part for line in [*lines[:most], *more] for part in fold(line))
    return [f"{title}:", *folded] if lines else []


def check_table(overview: Overview, sheets: Sheets, colour: bool) -> list[str]:
    """The counts of a single account as a table: headings, then a line for each check."""
    tallies = {one.title: check_tally(overview, one, lines) for one, lines in sheets.items()}
    heading = number_cells(next(iter(tallies.values()), {}), names=True)
    lines = [f"{title:15}{number_cells(counts, colour)}" for title, counts in tallies.items()]
    return [f"{'':15}{heading}", *lines]


def account_table(overview: Overview, _: Sheets, colour: bool) -> list[str]:
    """A table of the counts of the first MAX_ACCOUNT_LINES accounts; the status if not audited."""
    reports = overview.reports
    lines = [describe_accounts(reports), ""]
    for n, report in enumerate(reports[:MAX_ACCOUNT_LINES]):
        counts = tally(report.rows(), overview.with_state)
        del counts[ACCEPTED]  # ACCEPTED has no column here, so that lines fit the terminal
        if n == 0:
            lines.append(" " * 33 + number_cells(counts, names=True))
        end = number_cells(counts, colour)
        if report.status != ACTIVE:  # only the status: the section `Not checked` has the reason
            end = f"{report.status:>{len(number_cells(counts))}}"
        lines.append(f"{report.account:12} {fit(report.name, 19)} {end}")
    more = len(reports) - MAX_ACCOUNT_LINES
    return [*lines, f"and {more:,} more accounts"] if more > 0 else lines


def number_cells(counts: dict[str, int], colour: bool = False, names: bool = False) -> str:
    """A line of counts in columns, with - for 0; or, with `names`, of the columns' headings."""
    cells = []
    for name, number in counts.items():
        cell = f"{name if names else number or '-':>{max(len(name), 5) + 1}}"
        code = ANSI.get(name) if colour and number else None
        cells.append(f"\x1b[{code}m{cell}\x1b[0m" if code else cell)
    return "".join(cells)


def fold(text: str, indent: str = "  ") -> list[str]:
    """The text folded to COLUMNS_OF_TERMINAL; lines after the first begin with 6 * `indent`.

    A wide character takes two columns, so it is folded with a placeholder behind it.
    """
    padded = "".join(f"{char}\0" if display_width(char) == 2 else char for char in printable(text))
    lines = textwrap.wrap(
        padded, COLUMNS_OF_TERMINAL, initial_indent=indent, subsequent_indent=6 * indent,
        break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\0", "") for line in lines]


def printable(text: str) -> str:
    """The text with a question mark for each control or other unprintable character."""
    return "".join(char if char.isprintable() else "?" for char in text)


def display_width(char: str) -> int:
    """The number of columns that a character takes on a terminal: 0, 1 or 2."""
    return 0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1


def fit(text: str, places: int) -> str:
    """The text cut, or filled with blanks, to a number of columns on a terminal."""
    shown = ""
    for char in printable(text):
        if display_width(char) > places:
            break
        shown, places = shown + char, places - display_width(char)
    return shown + " " * places


# --- workbook: columns and styles -----------------------------------------------------

REMEDIATION_NOTE = " Remediation: read a command first, what it closes may be in use."
MAX_ROWS = 65_536  # rows that a sheet of the .xls format can have
HEADER_ROWS = 4  # rows above a table: title, note, a thin blank row, header
FROZEN_COLUMNS = 2  # columns that stay in view: Severity and Status
MAX_ROW_HEIGHT = 409 * 20  # greatest height of a row in the .xls format, in twentieths of a point
MIN_COLUMN, MAX_LINES_OF_CELL = 6, 20  # least width of a column in digits; most lines of a cell
# Widths in the units of the .xls format: of a digit, of a digit with some room, of a point.
DIGIT_UNIT, COLUMN_UNIT, POINT = 256, 270, 48.8
# Widths of letters in Arial, in digits; any other letter has the width 1, and bold adds a tenth.
NARROW, BOLD = 0.55, 1.1
LETTER_WIDTHS = {
    **dict.fromkeys(" !'(),-./:;I[]fijlrt|", NARROW),
    **dict.fromkeys("ceksvxyz", 0.9),
    **dict.fromkeys("@%ABCDEGHKMNOPQRSTUVWXYmw", 1.3),
}
DATE_WIDTH = 10  # the width of a date such as 2030-12-31, in digits
PAGE_WIDTH_PT = 785  # points between the margins of a landscape A4 page, less a little
MIN_SCALE = 70  # the least scale of a print in per cent: letters of 10 points get 7 points
SUMMARY_LAST_COLUMN = 12  # last column of the Summary, which is one portrait page wide
SUMMARY_GAPS, SUMMARY_WORST = 2, 10  # lines of gaps and of findings that fit the first screen
COMMAND_LETTERS = 105  # most letters of a command that fit one line of the Summary, in small type

ALWAYS, AT_SPACES, IF_IT_FITS, NEVER = "always", "at spaces", "if it fits", "never"


class Column(NamedTuple):
    """The look of a column: it is the same on every sheet."""

    width: int = 24  # the greatest width of the column, in digits; longer text wraps
    wraps: str = ALWAYS  # when text wraps: ALWAYS, NEVER or AT_SPACES (an ID stays on one line)
    numeric: bool = False  # a column of numbers has its header aligned right
    printed: str = ALWAYS  # whether the column is printed: ALWAYS, NEVER or IF_IT_FITS on the page


NUMBER = Column(numeric=True)
COLUMNS: dict[str, Column] = {
    **dict.fromkeys(("Account name", "Used by", "Blocked by"), Column(12)),
    **dict.fromkeys(("Group name", "Ports", "Open to"), Column(14)),
    "User": Column(28),
    "Bucket": Column(30),
    "Grantee": Column(18, AT_SPACES),
    "Result": Column(39),
    **dict.fromkeys(("Requirement", "Finding"), Column(52)),
    **dict.fromkeys(("Instance ID", "Group ID", "Access key ID"), Column(wraps=AT_SPACES)),
    **dict.fromkeys(("VPC", "Owner"), Column(wraps=AT_SPACES)),
    **dict.fromkeys((*SEVERITIES, NOT_CHECKED, ACCEPTED, "New", "Resolved"), NUMBER),
    **dict.fromkeys(("Evaluated", "Failed", "Accounts failed", "Age (days)", "Days open"), NUMBER),
    **dict.fromkeys(("Severity", "Status"), Column(wraps=NEVER)),
    **dict.fromkeys(("First seen", "Control"), Column(printed=IF_IT_FITS)),
    "Workbook": Column(50, AT_SPACES, printed=IF_IT_FITS),
    "Remediation": Column(wraps=NEVER, printed=NEVER),
    "ID": Column(40, AT_SPACES, printed=NEVER),
}

STYLES = {
    # styles of severities and statuses: a cell with such a word has the style of that name
    CRITICAL: "font: bold on; pattern: pattern solid, fore_colour coral",
    HIGH: "font: bold on; pattern: pattern solid, fore_colour tan",
    MEDIUM: "font: bold on; pattern: pattern solid, fore_colour light_yellow",
    LOW: "pattern: pattern solid, fore_colour ice_blue",
    FINDING: "font: bold on",
    NOT_CHECKED: "font: colour white, bold on; pattern: pattern solid, fore_colour gray80",
    ACCEPTED: "font: colour gray50, italic on",
    **dict.fromkeys((OK, PASSED), "font: colour green"),
    FAILED: "font: colour dark_red, bold on",
    # styles of cells with any other text
    "new": "font: bold on; pattern: pattern solid, fore_colour light_turquoise",
    "header": "font: bold on; pattern: pattern solid, fore_colour gray25",
    "link": "font: colour blue, underline single",
    "cell": "font: bold off",
    "command": "font: name Courier New, colour gray80",
    "code": "font: name Courier New, colour gray80, height 160",
    "thin": "font: height 20",
    # styles of text that may run over into the next cell, so no line is drawn below it
    "title": "font: bold on, height 320",
    "note": "font: italic on",
    "jump": "font: colour blue, underline single",
    "section": "font: bold on, height 240",
    "bar": "font: colour dark_blue",
}
OVERFLOW_STYLES = ("title", "note", "jump", "section", "bar")
UNWRAPPED_STYLES = (*OVERFLOW_STYLES, "command", "code")
UNDERLINED_STYLES = STYLES.keys() - {*OVERFLOW_STYLES, "code", "thin"}  # cells with a line below
LINE_HEIGHT = 270  # height of a row of one line, in twentieths of a point like all heights
ROW_HEIGHTS = {"title": 440, "section": 340}
THIN_ROW = 60
CODE_HEIGHT = 230


class StyledCell(NamedTuple):
    """A cell with a style, and perhaps a link."""

    value: Cell
    style: str = "cell"  # a key of STYLES
    link: str = ""  # target of the link: a URL, a file in the same folder, or #'Sheet'!A1


TableRow = dict[str, Cell | StyledCell]  # the cells of a row, by the name of the column


def status_cell(word: str) -> StyledCell:
    """A cell with a word in the style that STYLES has for it; other text is in the style `cell`."""
    return StyledCell(word, word if word in STYLES else "cell")


@functools.cache
def xls_style(key: str, right: bool = False, date: bool = False, wrap: bool = True) -> xlwt.XFStyle:
    """A style of STYLES for xlwt, cached: an .xls workbook can have only 4,094 styles."""
    import xlwt

    align = f"alignment: vertical top, horizontal {'right' if right else 'left'}"
    wrapped = ", wrap on" if wrap and key not in UNWRAPPED_STYLES else ""
    below = "; borders: bottom hair, bottom_colour gray40" if key in UNDERLINED_STYLES else ""
    number_format = "yyyy-mm-dd" if date else "General"
    return xlwt.easyxf(f"{STYLES[key]}; {align}{wrapped}{below}", num_format_str=number_format)


def to_xls(value: Cell) -> Cell:
    """The value as .xls can hold it: date in UTC without zone, text cut off, blank for None."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).replace(tzinfo=None)
    if isinstance(value, str):
        text = value.encode("utf-16", "replace").decode("utf-16")
        return text if len(text) <= MAX_CELL_TEXT else text[: MAX_CELL_TEXT - 1] + "…"
    return "" if value is None else value


# --- workbook: what xlwt cannot write -------------------------------------------------
#
# A sheet and a workbook consist of BIFF records: type (2 bytes), length (2), data. Two kinds
# are added here: HLINK before the last record of a sheet, Lbl after the links of a workbook.
#
#     HLINK, type 0x01B8 ([MS-XLS] 2.4.140, [MS-OSHARED] 2.3.7)
#         first row (2), last row (2), first column (2), last column (2)
#         D0C9EA79... (16)      this is a link
#         2 (4)                 the version
#         kind (4)              8 a place in this workbook, 3 a URL, 1 a file in the same folder
#         kind 8: number of letters, with a zero at the end (4), letters as UTF-16
#         kind 3: E0C9EA79... (16), number of bytes (4), letters as UTF-16
#         kind 1: 03030000... (16), 0 (2), number of bytes (4), letters, FFFF DEAD and zeros (24),
#             number of bytes that follow (4), if not ASCII: number of bytes (4), 3 (2), UTF-16
#
#     Lbl, type 0x0018 ([MS-XLS] 2.4.150), a name of a sheet: 6 is Print_Area, 7 Print_Titles
#         0x20 built in (2), 0 (1), length of the name (1), length of the formula (2)
#         0 (2), number of the sheet from 1 (2), 0 (4), 0 (1), name (1)
#         formula: 3B (1), reference to the sheet (2), rows (2 + 2), columns (2 + 2)

HLINK, LABEL = 0x01B8, 0x0018
LINK_ID = bytes.fromhex("D0C9EA79F9BACE118C8200AA004BA90B")
URL_ID = bytes.fromhex("E0C9EA79F9BACE118C8200AA004BA90B")
FILE_ID = bytes.fromhex("0303000000000000C000000000000046")
PRINT_AREA, PRINT_TITLES = 6, 7
LAST_COLUMN = 255  # the last column of the .xls format, counted from 0
MAX_LINK = 2_000  # most letters of a link: Excel refuses a longer URL, a record has no room for it
END_RECORD = 4  # bytes of the record that ends a sheet


def biff_record(kind: int, data: bytes) -> bytes:
    """The bytes of a record of the .xls format: its kind, its length, its data."""
    return struct.pack("<HH", kind, len(data)) + data


def link_data(target: str) -> bytes:
    """The bytes of a link's target: `#Sheet!A1`, a URL, or else a file in the same folder."""
    text = (target.removeprefix("#") + "\0").encode("utf-16-le")
    if target.startswith("#"):
        return struct.pack("<II", 8, len(text) // 2) + text
    if ":" in target:
        return struct.pack("<I", 3) + URL_ID + struct.pack("<I", len(text)) + text
    path, wide = target.encode("ascii", "replace") + b"\0", target.encode("utf-16-le")
    more = b"" if target.isascii() else struct.pack("<IH", len(wide), 3) + wide
    end = struct.pack("<HH20xI", 0xFFFF, 0xDEAD, len(more)) + more
    return struct.pack("<I", 1) + FILE_ID + struct.pack("<HI", 0, len(path)) + path + end


def add_links(sheet: Any, links: list[tuple[int, int, str]]) -> None:
    """Adds links (row, column, target) to a sheet, except those longer than MAX_LINK.

    A formula instead of a link would have no value for those who read the file without Excel.
    """
    records = []
    for row, column, target in (one for one in links if len(one[2]) <= MAX_LINK):
        head = struct.pack("<HHHH", row, row, column, column) + LINK_ID + struct.pack("<I", 2)
        records.append(biff_record(HLINK, head + link_data(target)))
    plain = sheet.get_biff_data()
    data = b"".join((plain[:-END_RECORD], *records, plain[-END_RECORD:]))
    sheet.get_biff_data = lambda: data


def set_print_areas(book: Any, areas: Sequence[tuple[int, int]]) -> None:
    """Limits the print of each sheet: from A1 to the last row and column given, counted from 0.
    All but the first sheet have their header again on every page.
    """
    names = b""
    book.setup_ownbook()
    refs = book._Workbook__sheet_refs
    for sheet, (row, column) in enumerate(areas):
        ref = refs.setdefault((book._ownbook_supbookx, sheet, sheet), len(refs))
        header = (PRINT_TITLES, HEADER_ROWS - 1, HEADER_ROWS - 1, 0, LAST_COLUMN)
        for name, *place in [(PRINT_AREA, 0, row, 0, column), *([header] if sheet else [])]:
            formula = struct.pack("<BHHHHH", 0x3B, ref, *place)
            head = struct.pack("<HBBHHHIBB", 0x20, 0, 1, len(formula), 0, sheet + 1, 0, 0, name)
            names += biff_record(LABEL, head + formula)
    links = book._Workbook__all_links_rec
    book._Workbook__all_links_rec = lambda: links() + names


# --- workbook: sheets -----------------------------------------------------------------


def text_width(text: str) -> float:
    """The width of a text in Arial, as the number of digits that would be as wide."""
    return math.fsum(LETTER_WIDTHS.get(letter, 1) for letter in text)


def lines_needed(text: str, width: float) -> int:
    """The number of lines of a text in a column; only a word wider than the column is broken.

    >>> lines_needed("1 interface, none public", 12)
    2
    """
    lines, room = 1, width
    for word in text.split():
        size = text_width(word)
        if size > room and room < width:
            lines, room = lines + 1, width
        lines += max(math.ceil(size / width) - 1, 0)
        room -= (size - 1e-9) % width + NARROW
    return lines


class SheetWriter:
    """A worksheet, written from top to bottom."""

    def __init__(self, sheet: Any, footer: str) -> None:
        self.sheet = sheet
        self.next_row = 0
        self.widths: Counter[int] = Counter()  # the width of each column so far, in digits
        self.links: list[tuple[int, int, str]] = []
        self.last_printed = SUMMARY_LAST_COLUMN  # the last column that is printed
        # the footer names the sheet, because xlwt numbers the pages of each sheet from 1
        sheet.header_str = b""
        sheet._Worksheet__footer_str = f"&L{footer}&R&A, &P"  # xlwt's setter wants ASCII

    def write_row(self, cells: Sequence[Cell | StyledCell], columns: Sequence[Column] = ()) -> None:
        """Writes a row, as high as its text needs, up to MAX_LINES_OF_CELL."""
        height = LINE_HEIGHT
        for number, cell in enumerate(cells):
            styled = cell if isinstance(cell, StyledCell) else StyledCell(cell)
            lines = self.write_cell(number, styled, columns[number] if columns else Column())
            needed = LINE_HEIGHT * min(lines, MAX_LINES_OF_CELL)
            height = max(height, needed, ROW_HEIGHTS.get(styled.style, 0))
        self.end_row(height)

    def write_cell(self, number: int, cell: StyledCell, column: Column) -> int:
        """Writes a cell, notes its width and link, and returns how many lines the cell needs."""
        value, name, link = cell
        if link:
            self.links.append((self.next_row, number, link))
        text, date = str(value), isinstance(value, datetime)
        wraps = not date and (" " in text or column.wraps == ALWAYS) and column.wraps != NEVER
        right = isinstance(value, int) or (name == "header" and column.numeric)
        overflows = name in OVERFLOW_STYLES
        if value or not overflows:
            look = xls_style(name, right, date, wraps)
            self.sheet.write(self.next_row, number, to_xls(value), look)
        if overflows:
            return 1
        bold = BOLD if "bold on" in STYLES[name] else 1
        width = DATE_WIDTH if date else math.ceil(text_width(text) * bold) + 1
        self.widths[number] = max(self.widths[number], min(width, column.width))
        return lines_needed(text, (column.width - 1) / bold) if wraps else 1

    def end_row(self, height: int) -> None:
        """Sets the height of the row that was written, and goes on to the next row."""
        self.sheet.row(self.next_row).height_mismatch = True
        self.sheet.row(self.next_row).height = min(height, MAX_ROW_HEIGHT)
        self.next_row += 1

    def width_in_digits(self, column: int) -> int:
        """The width of a column in digits, at least MIN_COLUMN."""
        return max(self.widths[column], MIN_COLUMN)

    def close(self) -> None:
        """Completes the sheet with widths of columns and links: nothing can be written after it."""
        for column in self.widths:
            self.sheet.col(column).width = COLUMN_UNIT * self.width_in_digits(column)
        add_links(self.sheet, self.links)


class TableWriter(SheetWriter):
    """A sheet with a title, a note, and a table under a header that stays in view."""

    def __init__(self, sheet: Any, footer: str, table: Table) -> None:
        """Writes the rows above a table: title with links, note, a thin row, header.

        The thin row is blank, so that filters and pivot tables see where the table begins.
        """
        super().__init__(sheet, footer)
        self.header = table.header
        self.columns = [COLUMNS.get(name, Column()) for name in table.header]
        sheet.portrait = False
        sheet.panes_frozen = True
        sheet.horz_split_pos, sheet.vert_split_pos = HEADER_ROWS, FROZEN_COLUMNS
        links = [StyledCell("Summary", "jump", "#Summary!A1")]
        links += [StyledCell("AWS documentation", "jump", table.docs)] if table.docs else []
        between = [StyledCell("", "title")] * FROZEN_COLUMNS
        self.write_row([StyledCell(table.title, "title"), *between, *links])
        self.write_row([StyledCell(table.note, "note")])
        self.end_row(THIN_ROW)
        self.write_row([StyledCell(name, "header") for name in self.header], self.columns)

    def write_table_row(self, cells: TableRow) -> None:
        """Writes a row of the table, from cells by column; a cell that is missing is blank."""
        self.write_row([cells.get(name, "") for name in self.header], self.columns)

    def close(self) -> None:
        """Completes the sheet: the columns that are printed, the widths, the links.

        Columns IF_IT_FITS are printed if they fit at MIN_SCALE. If those that are always printed
        do not fit, they go on to a second page.
        """
        widths = accumulate(map(self.width_in_digits, range(len(self.header))))
        fits = [COLUMN_UNIT * width / POINT * MIN_SCALE <= 100 * PAGE_WIDTH_PT for width in widths]
        for number, column in enumerate(self.columns):
            if column.printed == ALWAYS or (column.printed == IF_IT_FITS and fits[number]):
                self.last_printed = number
        self.sheet.fit_num_pages = self.sheet.fit_width_to_pages = int(fits[self.last_printed])
        self.sheet.fit_height_to_pages, self.sheet.print_scaling = 0, MIN_SCALE
        super().close()


class SummaryWriter(SheetWriter):
    """The first sheet: tables and sections on one printed page."""

    def __init__(self, sheet: Any, footer: str) -> None:
        super().__init__(sheet, footer)
        self.merged: dict[int, tuple[str, int, int]] = {}  # merged cells by row: text and columns

    def write_section(self, title: str, lines: Sequence[SummaryLine]) -> None:
        """Writes a title, with `: none` if no lines; then lines, with links and short commands."""
        self.next_row += 1
        self.write_row([StyledCell(title if lines else f"{title}: none", "section")])
        for label, text, link, command in lines:
            last = SUMMARY_LAST_COLUMN
            if link:
                self.links.append((self.next_row, last, link))
                self.sheet.write(self.next_row, last, "show", xls_style("link", right=True))
                last -= 1
            self.sheet.write(self.next_row, 0, label, xls_style(status_cell(label).style))
            self.write_merged(text, "cell", 1, last)
            if 0 < len(command) <= COMMAND_LETTERS:
                self.write_merged(command, "code", 1)

    def write_merged(
        self, text: str, style: str, first: int, last: int = SUMMARY_LAST_COLUMN
    ) -> None:
        """Writes text into merged columns and ends the row; `close` fits the height."""
        row = self.next_row
        self.sheet.write_merge(row, row, first, last, to_xls(text), xls_style(style))
        if style != "code":  # a command is one line high: its row need not be fitted
            self.merged[row] = text, first, last
        self.end_row(CODE_HEIGHT if style == "code" else LINE_HEIGHT)

    def close(self) -> None:
        """Completes the sheet: fits it on one printed page, and its rows to the height of text."""
        for row, (text, first, last) in self.merged.items():
            digits = sum(map(self.width_in_digits, range(first, last + 1)))
            lines = lines_needed(text, digits * COLUMN_UNIT / DIGIT_UNIT)
            self.sheet.row(row).height = min(self.sheet.row(row).height * lines, MAX_ROW_HEIGHT)
        self.sheet.portrait = True
        self.sheet.fit_num_pages = self.sheet.fit_height_to_pages = 1
        super().close()


class WorkbookWriter:
    """The sheets of a workbook in their order; `footer` stands on every printed page."""

    def __init__(self, footer: str) -> None:
        import xlwt

        self.book, self.footer = xlwt.Workbook(encoding="utf-8"), footer
        author = f"security_check.py {__version__}"
        # xlwt leaves out the length and flags before a string such as the author ([MS-XLS] 2.5.240)
        self.book.owner = struct.pack("<HB", len(author), 0).decode() + author
        self.summary = SummaryWriter(self.book.add_sheet("Summary"), footer)
        self.sheets: list[SheetWriter] = [self.summary]

    def write_table(self, table: Table) -> None:
        """Writes a table, on more sheets if it has more than MAX_ROWS; an empty table says so."""
        writer = self.add_table(table, 0)
        for number, cells in enumerate(table.rows):
            part, line = divmod(number, MAX_ROWS - HEADER_ROWS)
            if part and line == 0:
                writer = self.add_table(table, part)
            writer.write_table_row(cells)
        if writer.next_row == HEADER_ROWS:
            writer.write_row([StyledCell(table.empty, "note")])

    def add_table(self, table: Table, part: int) -> TableWriter:
        """A new sheet for a table: title, note and header are written, no rows yet."""
        sheet = self.book.add_sheet(sheet_title(table.title, part))
        self.sheets.append(writer := TableWriter(sheet, self.footer, table))
        return writer

    def data(self) -> bytes:
        """The workbook as the bytes of an .xls file; nothing can be written after this."""
        for writer in self.sheets:
            writer.close()
        set_print_areas(self.book, [(one.next_row - 1, one.last_printed) for one in self.sheets])
        file = io.BytesIO()
        self.book.save(file)
        return file.getvalue()


def sheet_title(title: str, part: int) -> str:
    """The name of the sheet of a table, or of its continuation: part 1 of `MFA` is `MFA (2)`."""
    return f"{title} ({part + 1})" if part else title


# --- workbook: tables -----------------------------------------------------------------

CIS_DOC_URL = (
    "https://docs.aws.amazon.com/securityhub/latest/userguide/cis-aws-foundations-benchmark.html"
)
CONSOLES = {  # hosts of the AWS console, by the start of a region; botocore knows only API hosts
    "cn-": "console.amazonaws.cn",
    "us-gov-": "console.amazonaws-us-gov.com",
    "eusc-": "console.amazonaws-eusc.eu",
    # consoles of the isolated partitions are not on the Internet, nor documented
    **dict.fromkeys(("us-iso", "eu-iso"), ""),
    "": "console.aws.amazon.com",
}


def console_link(line: SheetRow, column: str) -> str:
    """The URL of a cell's resource in the AWS console; blank for root and isolated partitions."""
    report, definition, row, _ = line
    names = {name: str(row.cells.get(name, "")) for name in definition.columns}
    if not names[column] or names[column] == ROOT:
        return ""
    region = names.get("Region") or report.home_region
    console = next(host for start, host in CONSOLES.items() if region.startswith(start))
    if not console:
        return ""
    quoted = {name: quote(value, safe="", errors="replace") for name, value in names.items()}
    return f"https://{region}.{console}/{definition.console_links[column].format_map(quoted)}"


def check_table_row(line: SheetRow, multi_account: bool) -> TableRow:
    """The cells of a row of a check's sheet; in an overview its ID begins with the account."""
    report, definition, row, _ = line
    command, manual = row.remediation
    values: dict[str, Cell] = {
        **row.cells,
        "Account": report.account,
        "Account name": report.name,
        "Result": describe_result(row),
        "Severity": row.severity,
        "Status": row.status,
        "Control": row.control,
        "First seen": start_of_day(row.first_seen) if row.first_seen else "",
        "Remediation": command or (f"({manual})" if manual else ""),
        "ID": f"{report.account}/{definition.id(row)}" if multi_account else definition.id(row),
    }
    styles = {name: NOT_CHECKED for name, cell in row.cells.items() if cell == NOT_CHECKED}
    styles |= {"Severity": row.severity, "Status": row.status}
    styles |= {"Result": "new"} if row.change in (NEW, WORSE) else {}
    styles |= {"Remediation": "command"} if command else {}
    if row.status == ACCEPTED:
        styles = dict.fromkeys((*definition.columns, *values), ACCEPTED)
    links = {name: console_link(line, name) for name in definition.console_links}
    styles |= {name: "link" for name, link in links.items() if link}
    return values | {
        name: StyledCell(values.get(name, ""), style, links.get(name, ""))
        for name, style in styles.items()
        if style
    }


def plain_value(cell: Cell | StyledCell) -> Cell:
    """The value of a cell, without the style that it may have."""
    return cell.value if isinstance(cell, StyledCell) else cell


def account_table_row(report: Report, overview: Overview) -> TableRow:
    """The cells of an account on the sheet Accounts; a workbook in the same folder is linked."""
    same_folder = report.workbook and Path(report.workbook).parent == Path(overview.path).parent
    status = FINDING if report.rows(FINDING) else NOT_CHECKED if report.errors() else OK
    status = status if report.status == ACTIVE else report.status
    counts = {name: n or "" for name, n in tally(report.rows(), with_new=True).items()}
    worst = next((name for name in SEVERITIES if counts[name]), "")
    name = Path(report.workbook).name
    return {
        **counts,
        "Severity": status_cell(worst) if worst else "",
        "Status": status_cell(status),
        "Account": report.account,
        "Name": report.name,
        "Alias": ", ".join(report.aliases),
        "Resolved": len(report.resolved or ()) or "",
        NOT_CHECKED: len(report.errors()) or "",
        "Result": describe_outcome(report),
        "Workbook": StyledCell(name, "link", name) if same_folder else report.workbook,
    }


def resolved_table_rows(reports: Iterable[Report], multi_account: bool) -> Iterator[TableRow]:
    """The rows of the sheet Resolved: the findings that were resolved since last time."""
    for report in reports:
        for id, known in (report.resolved or {}).items():
            first = start_of_day(known.first_seen)
            yield {
                "Status": "RESOLVED",
                "Account": report.account,
                "Account name": report.name,
                "Finding": f"{report.account}/{id}" if multi_account else id,
                "Result": known.result,
                "First seen": first,
                "Days open": (report.started - first).days,
            }


def control_table_rows(overview: Overview) -> Iterator[TableRow]:
    """The rows of the sheet Controls; the last cell of each links to the sheet of its check."""
    deciding = {name: definition for definition in CHECKS for name in definition.controls}
    for name, status in merge_statuses(overview.reports).items():
        control, title = deciding[name].controls[name], deciding[name].title
        known = [one.controls[name] for one in overview.reports if name in one.controls]
        failing = sum(one.failed > 0 for one in known)
        yield {
            "Severity": status_cell(control.severity),
            "Status": status_cell(status.status),
            "Control": name,
            "Requirement": control.requirement,
            "Evaluated": status.evaluated,
            "Failed": status.failed,
            **({"Accounts failed": failing} if overview.multi_account else {}),
            "CIS 5.0.0": control.cis_5,
            "CIS 3.0.0": control.cis_3,
            "PCI DSS 4.0.1": control.pci,
            "Sheet": StyledCell(title, "link", f"#'{title}'!A1"),
        }


# --- workbook: the Summary ------------------------------------------------------------


def write_summary(page: SummaryWriter, overview: Overview, sheets: Sheets) -> None:
    """Writes the sheet Summary: counts, gaps, worst findings, history, the question, the run."""
    whose = f"{describe_scope(overview)}, {overview.started:%Y-%m-%d}"
    page.write_row([StyledCell(f"AWS security check: {whose}", "title")])
    limited = describe_limits(overview) or any(report.errors() for report in overview.reports)
    page.write_merged(headline(overview), NOT_CHECKED if limited else OK, 0)
    page.write_merged(" ".join([describe_question(overview), *first_run_text(overview)]), "cell", 0)
    page.next_row += 1
    write_check_counts(page, overview, sheets)
    page.write_section("Not checked", gap_section(overview, sheets, SUMMARY_GAPS))
    findings = ranked(sheets, FINDING)
    page.write_section("Worst findings", first_of(worst_lines(findings, overview), SUMMARY_WORST))
    changed = [line for line in findings if line.row.change in (NEW, WORSE)]
    if lines := first_of(finding_lines(changed, overview), SUMMARY_WORST):
        page.write_section("New and worse", lines)
    write_history(page, merge_history(overview.reports))
    page.write_section("What was asked", details_lines(question_details(overview)))
    if remarks := [SummaryLine("", remark) for remark in overview.remarks]:
        page.write_section("The accept file", first_of(remarks, SUMMARY_WORST))
    page.write_section("The audit", details_lines(run_details(overview), Accounts="#Accounts!A1"))
    page.write_section("What a status means", details_lines(STATUS_HELP))


def details_lines(details: dict[str, str], **links: str) -> list[SummaryLine]:
    """The details (text by label) as lines of the Summary; `links` has targets by label."""
    return [SummaryLine(name, text, links.get(name, "")) for name, text in details.items()]


def write_check_counts(page: SummaryWriter, overview: Overview, sheets: Sheets) -> None:
    """Writes rows of counts: accounts not opened, if any; each check; a total of an overview."""
    counts = {one: check_tally(overview, one, lines) for one, lines in sheets.items()}
    unopened = Counter(report.status for report in overview.reports if report.error)
    names = ["Check", *next(iter(counts.values()), {NOT_CHECKED: 0})]
    columns = [COLUMNS.get(name, Column()) for name in names]
    page.write_row([StyledCell(name, "header") for name in names], columns)
    if unopened:
        link = StyledCell("Accounts", "link", "#Accounts!A1")
        title = link if overview.multi_account else StyledCell("Account")
        page.write_row([title, *(unopened[name] or "" for name in names[1:])])
    for definition, numbers in counts.items():
        title = StyledCell(definition.title, "link", f"#'{definition.title}'!A1")
        page.write_row([title, *(n or "" for n in numbers.values())])
    if overview.multi_account:
        total = sum(map(Counter, counts.values()), unopened)
        page.write_row(["All", "", *(total[name] or "" for name in names[2:])])


def write_history(page: SummaryWriter, history: Sequence[HistoryEntry]) -> None:
    """Writes a row for each day of the history, with a bar for the number of open findings."""
    if not history:
        return
    page.next_row += 1
    names = ["Date", *SEVERITIES, "New", "Resolved", NOT_CHECKED, "Findings"]
    columns = [COLUMNS.get(name, Column()) for name in names]
    page.write_row([StyledCell(name, "header") for name in names], columns)
    for entry, blocks in zip(history, bars(history, 24), strict=True):
        open_findings = [entry.open[name] for name in SEVERITIES]
        numbers = [*open_findings, entry.new, len(entry.days_open), entry.not_checked]
        total = StyledCell(f"{blocks} {sum(open_findings):,}", "bar")
        page.write_row([start_of_day(entry.day), *(n or "" for n in numbers), total])
    if text := describe_days_open(history):
        page.write_row([StyledCell(text, "note")])


# --- workbook, CSV --------------------------------------------------------------------


class Table(NamedTuple):
    """A sheet with a header, in the workbook or as CSV."""

    title: str
    note: str
    docs: str
    header: list[str]
    rows: Iterable[TableRow]
    empty: str = ""  # text in place of the rows, if there are none


def build_workbook(overview: Overview) -> bytes:
    """The bytes of the workbook of one account, or of the overview of several."""
    book = WorkbookWriter(f"{describe_scope(overview)}, {overview.started:%Y-%m-%d}")
    sheets = rows_by_check(overview.reports, with_ok=not overview.multi_account)
    write_summary(book.summary, overview, sheets)
    for table in all_tables(overview, sheets, overview.multi_account):
        book.write_table(table)
    return book.data()


def all_tables(overview: Overview, sheets: Sheets, with_account: bool) -> Iterator[Table]:
    """The tables of all sheets after the Summary, in their order."""
    account = ["Account", "Account name"] if with_account else []
    seen = ["First seen"] if overview.with_state else []
    end = ["Result", "Control", *seen, "Remediation", "ID"]
    if overview.multi_account:
        yield accounts_table(overview)
    for definition, lines in sheets.items():
        commands = any(line.row.remediation.command for line in lines)
        note = f"{definition.description}{REMEDIATION_NOTE if commands else ''}"
        header = ["Severity", "Status", *account, *definition.columns, *end]
        empty = f"Nothing in {counted(len(overview.reports), 'account')}"
        rows = (check_table_row(line, overview.multi_account) for line in lines)
        yield Table(definition.title, note, definition.docs, header, rows, empty)
    if controls := [*control_table_rows(overview)]:
        yield controls_table(controls)
    if overview.with_state:
        yield resolved_table(overview, account)


def accounts_table(overview: Overview) -> Table:
    """The sheet Accounts as a table: a row for each account of an overview."""
    header = ["Severity", "Status", "Account", "Name", "Alias", *SEVERITIES]
    header += ["New", "Resolved"] if overview.with_state else []
    header += [NOT_CHECKED, "Result", "Workbook"]
    rows = (account_table_row(report, overview) for report in overview.reports)
    return Table("Accounts", "Every account, the worst first.", "", header, rows)


def controls_table(rows: list[TableRow]) -> Table:
    """The sheet Controls as a table of these rows, one for each control that checks decide."""
    note = "Controls of AWS Security Hub that the checks decide, by the rules of Security Hub."
    return Table("Controls", note, CIS_DOC_URL, [*rows[0]], rows)


def resolved_table(overview: Overview, account: list[str]) -> Table:
    """The sheet Resolved as a table; `account` has the columns of the account, or none."""
    header = ["Severity", "Status", *account, "Finding", "Result", "First seen", "Days open"]
    note = "Findings of the last report that are resolved."
    rows = resolved_table_rows(overview.reports, overview.multi_account)
    return Table("Resolved", note, "", header, rows, "Nothing was resolved since last time")


# --- CSV ------------------------------------------------------------------------------


def csv_files(overview: Overview) -> Iterator[tuple[str, bytes]]:
    """The titles and CSV bytes of all tables, which have columns for the account in any case."""
    sheets = rows_by_check(overview.reports, with_ok=not overview.multi_account)
    for table in all_tables(overview, sheets, with_account=True):
        yield table.title, to_csv(table)


def to_csv(table: Table) -> bytes:
    """The table as bytes of CSV; a `'` is put before text that would be read as a formula."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(table.header)
    for cells in table.rows:
        values = [plain_value(cells.get(name, "")) for name in table.header]
        texts = (f"{one:%Y-%m-%d}" if isinstance(one, datetime) else str(one) for one in values)
        writer.writerow(f"'{text}" if text[:1] in tuple("=+-@\t\r") else text for text in texts)
    return file.getvalue().encode("utf-8-sig")


# --- OCSF -----------------------------------------------------------------------------
#
# Compliance Finding, class 2003, of the Open Cybersecurity Schema Framework:
# https://schema.ocsf.io/1.5.0/classes/compliance_finding

OCSF_VERSION, OCSF_CLASS = "1.5.0", 2003
OCSF_SEVERITIES = {CRITICAL: 5, HIGH: 4, MEDIUM: 3, LOW: 2, "": 0}  # blank severity is 0, Unknown
OCSF_STATUSES = {"New": (1, 1), "In Progress": (2, 2), "Suppressed": (3, 2), "Resolved": (4, 3)}
OCSF_ACTIVITIES = {1: "Create", 2: "Update", 3: "Close"}
OCSF_COMPLIANCE = {1: "Pass", 2: "Warning", 3: "Fail"}  # NOT CHECKED is a Warning in OCSF


def to_ocsf(reports: Iterable[Report]) -> bytes:
    """The OCSF events of the reports (not OK, resolved, not opened), as one JSON object a line."""
    events = (event for report in reports for event in ocsf_events(report))
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def ocsf_events(report: Report) -> Iterator[dict[str, Any]]:
    """The OCSF events of an account: its error, rows that are not OK, and what was resolved."""
    if report.error:
        status = "Suppressed" if report.error_acceptance else "New"
        text = f"The account could not be audited: {describe_outcome(report)}"
        yield ocsf_event(report, NOT_CHECKED_END, text, status, 2)
    for result in report.results:
        for row in (row for row in result.rows if row.status != OK):
            yield ocsf_row_event(report, result.check, row)
    for id, known in (report.resolved or {}).items():
        severity, first_seen = known.severity, known.first_seen
        yield ocsf_event(report, id, known.result, "Resolved", 1, severity, first_seen)


def ocsf_time(moment: datetime) -> int:
    """The moment in milliseconds since 1970, as OCSF writes a time."""
    return round(moment.timestamp() * 1000)


def ocsf_event(
    report: Report, id: str, text: str, status: str, result: int, severity: str = "", day: str = ""
) -> dict[str, Any]:
    """An OCSF event with the fields that all events have, and the account as its resource.

    `result` is a key of OCSF_COMPLIANCE, `day` the day on which the finding was first seen.
    """
    status_id, activity = OCSF_STATUSES[status]
    name = report.name or ", ".join(report.aliases)
    account = {"uid": report.account, "name": name, "type": "AWS Account", "type_id": 10}
    script, source = "security_check.py", check_name_of(id)
    product = {"name": script, "vendor_name": script, "version": __version__}
    metadata = {"version": OCSF_VERSION, "profiles": ["cloud"], "event_code": source}
    finding = {"uid": f"{report.account}/{id}", "title": text, "types": [source]}
    seen = {"first_seen_time": ocsf_time(start_of_day(day))} if day else {}
    passed = {"status_id": result, "status": OCSF_COMPLIANCE[result]}
    return {
        "metadata": {**metadata, "product": product},
        "time": ocsf_time(report.started),
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": OCSF_CLASS,
        "class_name": "Compliance Finding",
        "activity_id": activity,
        "activity_name": OCSF_ACTIVITIES[activity],
        "type_uid": OCSF_CLASS * 100 + activity,
        "type_name": f"Compliance Finding: {OCSF_ACTIVITIES[activity]}",
        "severity_id": OCSF_SEVERITIES[severity],
        "severity": severity or "Unknown",
        "status_id": status_id,
        "status": status,
        "message": text,
        "finding_info": {**finding, **seen},
        "compliance": {**passed, "standards": []},
        "cloud": {"provider": "AWS", "account": account},
        "resources": [{"uid": f"AWS::::Account:{report.account}"}],
    }


def ocsf_row_event(report: Report, definition: Check, row: Row) -> dict[str, Any]:
    """The OCSF event of a row that is not OK, with its resource, region and remediation."""
    known = row.first_seen not in ("", f"{report.started:%Y-%m-%d}")
    status = "Suppressed" if row.status == ACCEPTED else "In Progress" if known else "New"
    id, text, result = definition.id(row), describe_result(row), 2 if row.error else 3
    event = ocsf_event(report, id, text, status, result, row.severity, row.first_seen)
    event["finding_info"]["title"] = text if row.error else row.kind or text
    event["finding_info"]["desc"] = definition.description
    if row.controls:
        event["compliance"] |= ocsf_controls(definition, row.controls)
    fix = row.remediation.command or row.remediation.manual or needed_permission(row.error).strip()
    event["remediation"] = {"desc": fix or definition.description, "references": [definition.docs]}
    if row.acceptance:
        event["comment"] = row.acceptance.reason
    event["cloud"]["region"] = region = str(row.cells.get("Region") or report.home_region)
    event["resources"][0] |= {
        "uid": row.arn or event["resources"][0]["uid"],
        "name": next(iter(definition.resource_names(row)), ""),
        "region": region,
        "cloud_partition": (row.arn or report.auditor_arn).split(":")[1],
        "data": row.facts,
    }
    return event


def ocsf_controls(definition: Check, names: list[str]) -> dict[str, Any]:
    """The fields of an OCSF event on failed controls, with their numbers in other standards."""
    controls = [definition.controls[name] for name in names if name in definition.controls]
    numbers = {
        "CIS AWS Foundations Benchmark 5.0.0": [one.cis_5 for one in controls if one.cis_5],
        "CIS AWS Foundations Benchmark 3.0.0": [one.cis_3 for one in controls if one.cis_3],
        "PCI DSS 4.0.1": [one.pci for one in controls if one.pci],
    }
    texts = {name: ", ".join(dict.fromkeys(found)) for name, found in numbers.items() if found}
    return {
        "control": names[0],
        "standards": ["AWS Security Hub", *texts],
        "requirements": [
            *(f"AWS Security Hub {name}" for name in names),
            *(f"{standard} {text}" for standard, text in texts.items()),
        ],
    }


# === command line =====================================================================

# --- streams --------------------------------------------------------------------------


def print_message(text: str, stream: TextIO | None) -> None:
    """Prints text for people; an error in printing is ignored, as the audit is still good."""
    with contextlib.suppress(OSError, ValueError):
        if stream is not None:  # the stream is None if the program was started with it closed
            print_line(text, stream)


def print_result(text: str) -> None:
    """Prints a result on standard output; raises CannotRun if that fails."""
    if sys.stdout is None:
        raise CannotRun("cannot write to standard output: it is closed")
    try:
        print_line(text, sys.stdout)
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot write to standard output: {error_text(error)}") from error


def print_line(text: str, stream: TextIO) -> None:
    """Prints and flushes text, ? for what the encoding lacks; an OSError mutes the stream first."""
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except OSError:
        # Python would complain again when it flushes at its end: the stream becomes the null device
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def warn(text: str) -> None:
    """Prints a line on standard error, with the name of the script in front."""
    print_message(f"security_check.py: {printable(text)}", sys.stderr)


def show_progress(started: float, wanted: bool, text: str) -> None:
    """Shows progress at a terminal in a line that the next one overwrites; blank text clears it."""
    if wanted and sys.stderr and sys.stderr.isatty():
        seconds = f"{time.monotonic() - started:.0f} s"
        sys.stderr.write(f"\r\x1b[K{text[:68]}  {seconds}" if text else "\r\x1b[K")
        sys.stderr.flush()


class CallLogHandler(logging.Handler):
    """Prints the log of our calls on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record of the log on standard error."""
        print_message(printable(record.getMessage()), sys.stderr)


def log_calls(wanted: bool) -> None:
    """Switches our log of calls to AWS on if wanted; the logs of libraries are never shown.

    Those hold tokens and passwords; in AWS Lambda the handler that is there from the start
    would show them.
    """
    for name in ("botocore", "boto3", "urllib3", CALL_LOG.name):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    CALL_LOG.handlers = [CallLogHandler()]
    CALL_LOG.setLevel(logging.DEBUG if wanted else logging.CRITICAL)


# --- arguments ------------------------------------------------------------------------

DEFAULT_ROLE = "security-check"  # name of the role to assume in other accounts, if no --role
EPILOG = """\
(*) takes several, and may be repeated. @FILE is a file of options.

The checks are:
  {checks}

exit codes:
  0  everything was checked, nothing found
  1  everything was checked, there are findings
  2  could not start or could not write; no report
  3  the report is written, but something was NOT CHECKED

Credentials, regions and proxies are configured as for the AWS CLI."""


def regex_type(pattern: str, what: str) -> Callable[[str], str]:
    """A type for argparse: text that matches the pattern; the error says it is not `what`."""

    def parse(text: str) -> str:
        """The text, if it matches the pattern; argparse prints the error if it does not."""
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return text

    return parse


ACCOUNT_TYPE = regex_type(r"\d{12}", "an account number of twelve digits")
DAYS_TYPE = regex_type(r"\d{1,5}", "a number of days")
# role names: https://docs.aws.amazon.com/IAM/latest/APIReference/API_Role.html
ROLE_TYPE = regex_type(r"(?!arn:)/?([!-.0-~]+/)*[\w+=,.@-]{1,64}", "the name of a role")
# external IDs: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
EXTERNAL_ID_TYPE = regex_type(r"[\w+=,.@:/-]{2,1224}", "an external ID")

UNKNOWN_PLACEHOLDER = re.compile(r"\{(?!account\}|date\}|time\}).*?\}")
FORMATS = {".xls", ".xlsx", ".ods", ".csv", ".json", ".html", ".pdf", ".txt"}
NAMES_FOLDER = re.compile(r"(^|[/\\])\.{0,2}$")  # matches names of folders, such as `x/` or `..`
AUDIT_ONLY_OPTIONS = ("role", "external_id", "check", "accept", "max_key_age", "fail_on")
NOT_TOGETHER = {
    "merge": (*AUDIT_ONLY_OPTIONS, "region", "exclude_region", "list"),
    "list": (*AUDIT_ONLY_OPTIONS, "output", "no_workbook", "json", "ocsf", "csv", "state"),
    "no_workbook": ("output",),
}


def path_type(*own: str) -> Callable[[str], str]:
    """A type for argparse: a file, not of a format outside `own`; a folder if `own` is empty.

    The name is here or in S3. Endings outside FORMATS are allowed too; the name `-`, standard
    output, only if it is in `own`.
    """

    def parse(text: str) -> str:
        """The text, if it may name such a file or folder: fields, ending and `-` are checked."""
        path, match = Path(text), S3_NAME.fullmatch(text)
        ending = (path.suffix or f".{path.name}").lower()
        no_name = not text or "\0" in text or (text[:3].lower() == "s3:" and not match)
        no_file = own and (NAMES_FOLDER.search(text) or (match and not match[2]))
        problems = {
            "only {account}, {date} and {time} are filled in": UNKNOWN_PLACEHOLDER.search(text),
            f"it is not the name of a {'file' if own else 'folder'}": no_name or no_file,
            "only --json, --ocsf and --list can be standard output": text == "-"
            and text not in own,
            f"it promises another format than {in_words(sorted({*own} - {'-'}))}": own
            and ending in FORMATS.difference(own),
        }
        for problem in (sentence for sentence, wrong in problems.items() if wrong):
            raise argparse.ArgumentTypeError(f"{text!r}: {problem}")
        return text

    return parse


FOLDER = path_type()


class OptionParser(argparse.ArgumentParser):
    """A parser that reads files of options: lines as on a command line, and comments behind #."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """The options in a line of a file of options (@FILE), split as a shell splits them."""
        try:
            return shlex.split(arg_line, comments=True)
        except ValueError as error:
            self.error(f"a file of options has the line {arg_line!r}: {error}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a run; if they are wrong, the program ends with exit code 2."""
    names = [definition.name for definition in CHECKS]
    parser = OptionParser(
        prog="security_check.py",
        fromfile_prefix_chars="@",
        description="Audit an AWS account with read-only checks, and write a workbook.",
        epilog=EPILOG.format(checks=", ".join(names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # abbreviations would become ambiguous when an option is added
    )
    results: dict[str, Any] = {"metavar": "FILE", "type": path_type("-", ".json", ".txt")}
    repeated: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
    # bytes that are no text reach argparse as the surrogates \udc80 to \udcff
    named = repeated | {"type": regex_type("[^\n\udc80-\udcff]+", "a name")}
    add = parser.add_argument
    add("--profile", **named, metavar="NAME", help="a profile of the AWS configuration (*)")
    add("--organization", action="store_true", help="audit every account of the organization")
    add("--account", **repeated, metavar="NUMBER", type=ACCOUNT_TYPE,
        help="audit this account; with --organization, only this one of it (*)")  # fmt: skip
    add("--exclude-account", **repeated, metavar="NUMBER", type=ACCOUNT_TYPE,
        help="leave this account of the organization out (*)")  # fmt: skip
    add("--role", metavar="NAME", type=ROLE_TYPE, default=DEFAULT_ROLE,
        help="the role to assume in other accounts (%(default)s)")  # fmt: skip
    add("--external-id", metavar="ID", type=EXTERNAL_ID_TYPE,
        help="the external ID that the trust policy of the role asks for")  # fmt: skip
    add("--region", **named, metavar="REGION", help="limit regional checks to a region (*)")
    add("--exclude-region", **named, metavar="REGION", help="leave this region out (*)")
    add("--check", **repeated, metavar="CHECK", choices=names, help="run only this check (*)")
    add("--output", metavar="FILE", type=path_type(".xls"),
        help="the workbook, or the overview of several accounts")  # fmt: skip
    add("--no-workbook", action="store_true", help="write no workbook")
    add("--json", **results, help="write the report as JSON too; - is standard output")
    add("--ocsf", **results, help="write findings and gaps as OCSF, an object a line; or -")
    add("--csv", metavar="FOLDER", type=FOLDER, help="write every sheet as a CSV file too")
    add("--state", metavar="FILE", type=path_type(".json", ".txt"),
        help="remember findings here, to tell new and resolved ones")  # fmt: skip
    add("--accept", metavar="FILE", type=path_type(*FORMATS),
        help="findings to accept: lines `ID [until YYYY-MM-DD] # reason`")  # fmt: skip
    add("--merge", **repeated, metavar="NAME", type=FOLDER,
        help="audit nothing: make the overview of these reports and folders")  # fmt: skip
    add("--list", metavar="FILE", type=path_type("-", ".csv", ".txt"),
        help="audit nothing: write the numbers of the accounts, one a line")  # fmt: skip
    add("--max-key-age", metavar="DAYS", type=DAYS_TYPE, default=str(MAX_KEY_AGE),
        help="an access key older than this is a finding (%(default)s)")  # fmt: skip
    add("--fail-on", metavar="SEVERITY", type=str.capitalize, choices=SEVERITIES, default=LOW,
        help="findings below this do not make the exit code 1 (%(default)s)")  # fmt: skip
    add("--quiet", action="store_true", help="print only if there is news, or an error")
    add("--debug", action="store_true", help="log the calls to AWS on standard error")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    try:
        options = parser.parse_args(argv)
    except (ValueError, RecursionError):
        parser.error("a file of options is no text, or names itself")
    if options.json == options.ocsf == "-":
        parser.error("--json and --ocsf cannot both be standard output")
    if options.exclude_account and not options.organization:
        parser.error("--exclude-account needs --organization")
    if len(set(options.profile)) > 1 and (options.organization or options.account):
        parser.error("--organization and --account take one --profile at most")
    for mode, others in NOT_TOGETHER.items():
        for name in others if getattr(options, mode) else ():
            if getattr(options, name) != parser.get_default(name):
                parser.error(f"--{mode} does not take --{name}".replace("_", "-"))
    return options


# --- credentials ----------------------------------------------------------------------

BAD_CREDENTIALS_CODES = {
    *("AuthFailure", "InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch"),
    *("InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed"),
    "UnrecognizedClientException",
}
LOGIN_CODES = ("LoginRefreshRequired", "LoginTokenLoadError", "LoginError")
SSO_CODES = ("SSOTokenLoadError", "TokenRetrievalError", "UnauthorizedSSOTokenError")
NOT_ACCEPTED = "AWS does not accept these credentials: check the access key and the clock"
CREDENTIALS_HELP = {  # advice by error code; {option} becomes --profile and its name
    **dict.fromkeys(EXPIRED_CODES, "the credentials have expired: renew them and run again"),
    "NoCredentialsError": "no AWS credentials found: "
    "run `aws configure{option}` or set AWS_PROFILE",
    "MissingDependencyException": "`aws login` needs one package more: "
    "run `pip install 'boto3[crt]'`",
    "MfaCodeRefused": "AWS does not accept the MFA code: run again with the next one, "
    "or check mfa_serial",
    "NoTerminal": "the profile asks for an MFA code, and there is no terminal to type it",
    **dict.fromkeys(LOGIN_CODES, "the login session has expired: run `aws login{option}`"),
    **dict.fromkeys(SSO_CODES, "the SSO session has expired: run `aws sso login{option}`"),
    **dict.fromkeys(BAD_CREDENTIALS_CODES, NOT_ACCEPTED),
}
CONNECTION_HELP = {
    "EndpointConnectionError": "check the network, the region and AWS_ENDPOINT_URL",
    "InvalidEndpoint": "check AWS_ENDPOINT_URL",
    "NoRegionError": "set AWS_REGION",
    "ProxyConnectionError": "check HTTPS_PROXY",
    "SSLError": "check AWS_CA_BUNDLE",
    "HTTPClientError": "check the access key and the token for characters that do not belong there",
    "FileNotFoundError": "check credential_process",
    "JSONDecodeError": "check what credential_process prints",
    "CredentialRetrievalError": "",
}


def credentials_help(error: AwsError, profile: str | None) -> str:
    """The message about a failed sign-in: advice for a known error, else the error and a hint."""
    if text := CREDENTIALS_HELP.get(error.code):
        return text.format(option=f" --profile {profile}" if profile else "")
    otherwise = "check the AWS CLI's configuration" if error.service == SIGN_IN.service else ""
    hint = CONNECTION_HELP.get(error.code, otherwise)
    return f"cannot reach the account: {error}{needed_permission(error)}{hint and f': {hint}'}"


def connect(
    options: argparse.Namespace, profile: str | None, writes: Collection[str] = ()
) -> Account:
    """The account of a profile's credentials, which can read and make the calls in `writes`.

    Raises CannotRun. One sign-in serves the whole run, so that an MFA code is asked once.
    """
    from botocore.exceptions import BotoCoreError, ProfileNotFound

    now = utc_now()
    sign_ins = vars(options).setdefault("sign_ins", {})
    try:
        if profile not in sign_ins:
            sign_ins[profile] = sign_in(profile, options.region)
        session = new_session(profile, sign_ins[profile], writes)
        limits = options.region, options.exclude_region, int(options.max_key_age)
        aws = Account(session, now, *limits, profile=profile or "")
        identity = aws.ask("sts", "GetCallerIdentity")
        aws.number, aws.arn = identity["Account"], identity["Arn"]
    except ProfileNotFound as error:
        import botocore.session

        known = ", ".join(botocore.session.Session().available_profiles) or "none"
        raise CannotRun(f"{error} (profiles: {known})") from error
    except (AwsCallFailed, BotoCoreError) as error:
        raise CannotRun(credentials_help(describe_failure(error, SIGN_IN), profile)) from error
    return aws


def assume_role(caller: Account, role: str, number: str, external_id: str | None = None) -> Account:
    """The account of a number, opened with the role; the caller's own is opened without it."""
    limits = caller.only_regions, caller.excluded_regions, caller.max_key_age
    if number == caller.number:
        return Account(caller.session, utc_now(), *limits, number, caller.arn, caller.profile)
    session, arn = role_session(caller, role, number, external_id)
    return Account(session, utc_now(), *limits, number, arn)


def role_session(
    caller: Account, role: str, number: str, external_id: str | None
) -> tuple[boto3.Session, str]:
    """A read-only session with a role in another account, renewed in time; the session's ARN."""
    from botocore.credentials import RefreshableCredentials

    who = re.split("[/:]", caller.arn)[-1]
    name = re.sub(r"[^A-Za-z0-9_+=,.@-]", "-", f"security-check-{who}")[:64]
    wanted = f"arn:{caller.partition}:iam::{number}:role/{role.lstrip('/')}"
    params = {"RoleArn": wanted, "RoleSessionName": name}
    params["Policy"] = json.dumps(READ_POLICY, separators=(",", ":"))
    params |= {"ExternalId": external_id} if external_id else {}

    def assume() -> Response:
        """The response of AssumeRole; an error names the role."""
        try:
            return caller.ask("sts", "AssumeRole", **params)
        except AwsCallFailed as failed:
            detail = f"{wanted} {failed.error.detail}".strip()
            raise AwsCallFailed(replace(failed.error, detail=detail)) from failed

    def metadata(response: Response) -> dict[str, str]:
        """The keys and their expiry in a response of AssumeRole, as botocore wants them."""
        keys = response["Credentials"]
        return {
            "access_key": keys["AccessKeyId"],
            "secret_key": keys["SecretAccessKey"],
            "token": keys["SessionToken"],
            "expiry_time": keys["Expiration"].isoformat(),
        }

    response = assume()
    credentials = RefreshableCredentials.create_from_metadata(
        metadata(response), refresh_using=lambda: metadata(assume()), method="assume-role"
    )
    base = SimpleNamespace(get_credentials=lambda: credentials)
    return new_session(caller.profile or None, base), response["AssumedRoleUser"]["Arn"]


# --- a run ----------------------------------------------------------------------------

OVERVIEW_NAME = "overview"  # in place of an account's number, in names of files on all accounts


@dataclass
class Run:
    """A run of the program: its options, and what it has read and written."""

    options: argparse.Namespace
    started: datetime = field(default_factory=lambda: utc_now().replace(microsecond=0))
    accept_files: dict[File, list[Acceptance]] = field(default_factory=dict)  # acceptances by file
    # the accounts in which something matched, by acceptance
    used_acceptances: dict[Acceptance, set[str]] = field(default_factory=dict)
    state_files: dict[File, dict[str, Any]] = field(default_factory=dict)  # raw states by file
    changes: dict[str, StateChange] = field(default_factory=dict)  # changes of state by account
    written: list[str] = field(default_factory=list)  # absolute names of the files written so far
    lock: Any = field(default_factory=threading.Lock)

    @property
    def today(self) -> str:
        """The day on which the run began, in UTC, such as 2030-12-31; the same for all accounts."""
        return f"{self.started:%Y-%m-%d}"

    @property
    def multi_account(self) -> bool:
        """Whether there is an overview: --organization, --merge, several accounts or profiles."""
        options = self.options
        named = max(len(set(options.account)), len(set(options.profile)))
        return bool(options.organization or options.merge) or named > 1

    @property
    def keeps_ok_rows(self) -> bool:
        """Whether OK rows are kept to the end: for one account, or for one JSON report of all."""
        name = self.options.json
        return not self.multi_account or bool(name and "{account}" not in name)

    @functools.cached_property
    def files_account(self) -> Account:
        """The account for files in S3: of the only profile, else of the default credentials."""
        profiles = {*self.options.profile}
        profile = profiles.pop() if len(profiles) == 1 else None
        return connect(self.options, profile, writes=("PutObject", "DeleteObject"))

    def filled(self, name: str, account: str = OVERVIEW_NAME) -> str:
        """The name with `{account}`, `{date}` and `{time}` filled in."""
        parts = {"account": account, "date": self.today, "time": f"{self.started:%H%M}"}
        return re.sub(r"\{(account|date|time)\}", lambda part: parts[part[1]], name)

    def file(self, name: str, account: str = OVERVIEW_NAME) -> File:
        """The file, here or in S3, of a name with `{account}` and the like filled in."""
        full = self.filled(name, account)
        if match := S3_NAME.fullmatch(full):
            return S3Object(self.files_account, match[1], match[2] or "")
        default = name.endswith(".xls") and name != self.options.output
        return LocalFile(Path(full), create_folder=full != name, numbered=default, tell=warn)

    def write(self, data: bytes, name: str, account: str = OVERVIEW_NAME) -> str:
        """Writes a file (or prints it, for `-`) and returns its absolute name. Raises CannotRun."""
        if name == "-":
            print_result(data.decode().removesuffix("\n"))
            return name
        self.written.append(written := write_or_save_copy(self.file(name, account), data))
        return written

    def try_write(
        self, data: bytes, name: str, errors: list[str], account: str = OVERVIEW_NAME
    ) -> str:
        """Writes like `write`; a failure is added to `errors`, and the name returned is blank."""
        try:
            return self.write(data, name, account)
        except CannotRun as why:
            errors.append(str(why))
        return ""

    def write_csv(
        self, tables: Iterable[tuple[str, bytes]], account: str, errors: list[str]
    ) -> None:
        """Writes tables as CSV files, and warns of CSV files of earlier runs in the folder."""
        written = set()
        for title, data in tables:
            name = csv_name(self.options.csv, title)
            self.try_write(data, name, errors, account)
            written.add(Path(self.filled(name, account)).name)
        folder = Path(self.filled(self.options.csv, account))
        found = sorted(one.name for one in folder.glob(f"{account}-*.csv"))
        if not self.options.quiet and (old := [name for name in found if name not in written]):
            warn(f"{folder} also has {in_words(old)} of an earlier run")

    def acceptances(self, account: str) -> list[Acceptance]:
        """All lines of an account's accept file, whose name may have {account}; read once."""
        if not self.options.accept:
            return []
        file = self.file(self.options.accept, account)
        if file not in self.accept_files:
            self.accept_files[file] = read_accept_file(file)
        return self.accept_files[file]

    def note_used_acceptances(self, acceptances: Iterable[Acceptance], account: str) -> None:
        """Notes that these acceptances are used: each matches something in the account."""
        with self.lock:
            for acceptance in acceptances:
                self.used_acceptances.setdefault(acceptance, set()).add(account)

    def accept_remarks(self, reports: Collection[Report]) -> list[str]:
        """The remarks on unused lines of the accept file, and on IDs accepted in several accounts.

        A line is called unused only if everything was asked for and read.
        """
        options, used = self.options, self.used_acceptances
        limits = ("merge", "check", "account", "region", "exclude_region")
        limited = any(getattr(options, name) for name in limits)
        lines = [one for found in self.accept_files.values() for one in found]
        remarks = [
            f"{one.pattern} is accepted in {counted(len(used[one]), 'account')}: put the account's "
            "number and a slash in front of it, if that is not meant"
            for one in lines
            if one.exactness()[0] and len(used.get(one, ())) > 1
        ]
        if limited or any(report.errors() for report in reports):
            return remarks
        idle = (one.pattern for one in lines if one not in used)
        return [*remarks, *(f"unused acceptance: {name} matches no finding" for name in idle)]

    def state_file(self, account: str) -> dict[str, Any]:
        """The states in the state file of an account, by account, not yet decoded; read once."""
        file = self.file(self.options.state, account)
        with self.lock:
            if file not in self.state_files:
                self.state_files[file] = read_state_file(file)
            return self.state_files[file]

    def state(self, account: str) -> AccountState | None:
        """The state of an account after earlier runs; None without --state. Raises CannotRun."""
        if not self.options.state:
            return None
        file = self.file(self.options.state, account)
        return account_state(self.state_file(account), account, file)

    def write_states(self) -> list[str]:
        """Writes the changes to the state files; returns the errors of those that failed."""
        files = defaultdict[File, dict[str, StateChange]](dict)
        for account, change in self.changes.items():
            files[self.file(self.options.state, account)][account] = change
        failures = []
        for file, changes in files.items():
            try:
                write_state_file(file, changes)
            except CannotRun as why:
                failures.append(str(why))
        return failures

    def with_question(self, report: Report) -> Report:
        """The report with its question completed by options: accounts, regions and --fail-on."""
        options, question = self.options, report.question
        if not question:
            return report
        named = {*question.accounts, *(options.account if options.organization else ())}
        excluded = sorted({*question.excluded_accounts, *options.exclude_account})
        question = replace(question, accounts=sorted(named), excluded_accounts=excluded)
        if not options.merge:
            wanted, left_out = sorted({*options.region}), sorted({*options.exclude_region})
            question = replace(question, regions=wanted, excluded_regions=left_out)
            question = replace(question, fail_on=options.fail_on)
        return replace(report, question=question)

    def overview_name(self) -> str:
        """The name of the overview's file: --output, or else a name with the time of the run."""
        return self.options.output or default_name(OVERVIEW_NAME, self.started)

    def workbook_name(self, account: str, started: datetime) -> str:
        """The name of an account's workbook: --output, or its own name in the overview's folder."""
        output, default = self.options.output, default_name(account, started)
        if output and self.multi_account and "{account}" not in output:
            return f"{output.removesuffix(Path(output).name)}{default}"
        return output or default


def default_name(account: str, started: datetime) -> str:
    """The name of a workbook if there is no --output, with the account and the time."""
    return f"security_check_{account}_{started:%Y-%m-%d_%H%M%S}.xls"


def csv_name(folder: str, title: str) -> str:
    """The name of a table's CSV file in a folder, with `{account}` still to be filled in."""
    return f"{folder.rstrip('/')}/{{account}}-{title.lower().replace(' ', '-')}.csv"


def check_before_start(run: Run) -> None:
    """Raises CannotRun if two options name one file or a file is unusable, before the audit.

    Files in S3 come last: for them AWS is called.
    """
    options = run.options
    pairs = [(one, getattr(options, one)) for one in ("accept", "state", "json", "ocsf", "list")]
    titles = [*(one.title for one in CHECKS), "Accounts", "Controls", "Resolved"]
    tables = [("csv", csv_name(options.csv, title)) for title in titles if options.csv]
    pairs += tables[:1] if S3_NAME.fullmatch(options.csv or "") else tables
    pairs += [("merge", name) for name in options.merge]
    if not (options.no_workbook or options.list):
        pairs += [("output", run.overview_name())]
    names = [pair for pair in pairs if pair[1] not in (None, "-")]
    refuse_shared_files(run, names)
    for option, name in sorted(names, key=lambda pair: bool(S3_NAME.fullmatch(pair[1]))):
        check_file(run, option, name)


def refuse_shared_files(run: Run, names: Sequence[tuple[str, str]]) -> None:
    """Raises CannotRun if two options name one file: one would destroy what the other needs."""
    for account in (OVERVIEW_NAME, *run.options.account, *re.findall(r"\d{12}", str(names))):
        options: dict[str, str] = {}
        for option, name in names:
            full = run.filled(name, account)
            place = f"s3{full[2:]}" if S3_NAME.fullmatch(full) else os.path.realpath(full)
            other = options.setdefault(place, option)
            if other != option and not LocalFile(Path(full)).is_stream():
                raise CannotRun(f"--{other} and --{option} are one file: {full}")


def check_file(run: Run, option: str, name: str) -> None:
    """Raises CannotRun if the file of an option cannot be read or written as the option needs."""
    file = run.file(name)  # a name in S3 makes the session for S3, before the threads start
    here, one_for_all = isinstance(file, LocalFile), "{account}" not in name
    if option == "merge" and here:
        with read_errors_as_cannot_run(file):
            file.list_json()
    elif option == "accept" and one_for_all:
        run.acceptances("")
    elif option not in ("merge", "accept") and not (option == "state" and run.options.merge):
        for account in {OVERVIEW_NAME, "0" * 12, *run.options.account} if here else {OVERVIEW_NAME}:
            run.file(name, account).ensure_writable()
    if option == "state":
        if isinstance(file, LocalFile) and file.is_stream():
            raise CannotRun(f"{file} is a device or a pipe: it remembers nothing")
        if one_for_all:
            run.state_file("")


# --- the accounts of a run ------------------------------------------------------------


class Selection(NamedTuple):
    """The accounts of a run: to be audited, or expected among the reports that are merged."""

    scope: str
    auditor_arn: str
    jobs: list[AccountJob]


def select_accounts(run: Run) -> Selection:
    """The accounts of the run: of the organization, or those that options name, or the caller's."""
    options = run.options
    if options.merge and not options.organization:
        return Selection("AWS accounts", "", [*map(AccountJob, options.account)])
    if len(set(options.profile)) > 1:
        jobs = jobs_by_profile(options)
        return Selection("AWS profiles", ", ".join(options.profile), jobs)
    caller = connect(options, next(iter(options.profile), None))
    if options.organization:
        jobs = organization_jobs(run, caller)
        return Selection(f"AWS organization of {caller.number}", caller.arn, jobs)
    numbers = dict.fromkeys(options.account or [caller.number])
    jobs = [account_job(caller, options, {"Id": number}) for number in numbers]
    return Selection("AWS accounts", caller.arn, jobs)


def without_excluded(options: argparse.Namespace, selection: Selection) -> Selection:
    """The selection without the accounts of --exclude-account; CannotRun if none is left."""
    excluded = {*options.exclude_account}
    for number in sorted(excluded - {job.account for job in selection.jobs}):
        warn(f"--exclude-account {number}: the run has no such account")
    jobs = [job for job in selection.jobs if job.account not in excluded]
    if excluded and not jobs:
        raise CannotRun("--exclude-account leaves no account")
    return selection._replace(jobs=jobs)


def account_job(caller: Account, options: argparse.Namespace, about: dict[str, Any]) -> AccountJob:
    """The job for an account that ListAccounts describes; only an active account is opened."""
    number, name = about["Id"], about.get("Name", "")
    # in ListAccounts, State replaces Status
    status = about.get("State") or about.get("Status") or ACTIVE
    profile = caller.profile if number == caller.number else ""
    opener = functools.partial(assume_role, caller, options.role, number, options.external_id)
    return AccountJob(number, name, profile, status, open=opener if status == ACTIVE else None)


def organization_jobs(run: Run, caller: Account) -> list[AccountJob]:
    """The jobs for --account (an error if not listed), or for all accounts and those that left.

    Accounts that the state knows and that are not listed any more have left the organization.
    """
    options = run.options
    try:
        found = caller.fetch("organizations", "ListAccounts", "Accounts", page_size=20)
        listed = {about["Id"]: about for about in found}
    except AwsCallFailed as failed:
        why = f"{failed.error}{needed_permission(failed.error)}"
        hint = "ask from the management account or a delegated administrator"
        raise CannotRun(f"cannot list the accounts: {why}; {hint}") from failed
    numbers = dict.fromkeys(options.account or listed)
    jobs = [account_job(caller, options, listed[one]) for one in numbers if one in listed]
    not_listed = AwsError("NotListed", "organizations", "ListAccounts")
    jobs += [AccountJob(one, error=not_listed) for one in numbers if one not in listed]
    left = [] if options.account else [one for one in known_accounts(run) if one not in listed]
    return [*jobs, *(AccountJob(one, account_status=LEFT_ORGANIZATION) for one in left)]


def known_accounts(run: Run) -> list[str]:
    """The numbers of accounts in the state file, or in the names of the state files."""
    state = run.options.state or ""
    if ACCOUNT_FIELD not in state:
        return sorted(run.state_file("")) if state else []
    try:
        return run.file(state, ACCOUNT_FIELD).accounts()
    except FileNotFoundError:
        return []
    except FILE_ERRORS as error:
        warn(f"cannot list {state}, so accounts that left are not told: {error_text(error)}")
        return []


def jobs_by_profile(options: argparse.Namespace) -> list[AccountJob]:
    """The jobs for the accounts of profiles, each once; a profile that fails has an error."""
    jobs: dict[str, AccountJob] = {}
    for profile in dict.fromkeys(options.profile):
        try:
            caller = connect(options, profile)
        except CannotRun as why:
            warn(f"{profile}: {why}")
            jobs[profile] = AccountJob("", profile, profile, error=to_aws_error(why))
            continue
        if first := jobs.get(caller.number):
            warn(f"{profile}: the same account as {first.profile}: audited once")
            continue
        opener = functools.partial(assume_role, caller, "", caller.number)
        jobs[caller.number] = AccountJob(caller.number, profile, profile, open=opener)
    return [*jobs.values()]


# --- auditing accounts ----------------------------------------------------------------

ACCOUNTS_AT_ONCE = 8  # accounts audited side by side: memory and sockets are the limit, not AWS


def audit_account(run: Run, aws: Account, job: AccountJob, progress: Progress) -> Report:
    """Audits an account and writes its files, but not its state: that follows at the run's end."""
    checks = [one for one in CHECKS if one.name in (run.options.check or one.name)]
    acceptances, state = run.acceptances(aws.number), run.state(aws.number)
    done = audit(aws, job, AuditInput(checks, acceptances, state, run.today), progress)
    run.note_used_acceptances(done.used_acceptances, aws.number)
    report = write_account_files(run, run.with_question(done.report))
    if state and not report.file_errors:
        run.changes[aws.number] = done.change
    return report


def write_account_files(run: Run, report: Report) -> Report:
    """Writes the workbook, CSV files and JSON of a report, and returns it with any failures.

    A report without results has only JSON.
    """
    options, errors = run.options, list[str]()
    account = report.account or file_name(report.name)
    if report.results and not options.no_workbook:
        name = run.workbook_name(account, report.started)
        remarks = [] if run.multi_account else run.accept_remarks([report])
        data = build_workbook(replace(Overview.of_one(report), remarks=remarks))
        report = replace(report, workbook=run.try_write(data, name, errors, account))
    audited = report.results or report.error
    if audited and options.csv and (not run.multi_account or "{account}" in options.csv):
        tables = csv_files(Overview.of_one(report)) if report.results else ()
        run.write_csv(tables, account, errors)
    if "{account}" in (options.json or ""):
        told = replace(report, file_errors=[*errors])
        run.try_write(to_json([told]), options.json, errors, account)
    return replace(report, file_errors=errors)


def file_name(name: str) -> str:
    """The name of a profile, quoted for the name of a file: `team/sso` must make no folder."""
    quoted = quote(name, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def cannot_open(error: AwsError) -> str:
    """The sentence that an account could not be opened, with reason and missing permission."""
    return f"cannot open the account: {error}{needed_permission(error)}"


def audit_safely(run: Run, job: AccountJob, progress: Progress) -> Report:
    """Audits an account and writes its files; if there are several, a failure is put in the report.

    The failure of a single account is raised, unless a call failed and --json can say so.
    """
    try:
        if job.open:
            with contextlib.closing(job.open()) as aws:
                report = audit_account(run, aws, job, progress)
                return report if run.keeps_ok_rows else drop_ok_rows(report)
        error = note_lost_account(run, job)
    except Exception as failure:
        if not run.multi_account:
            if not isinstance(failure, AwsCallFailed):
                raise
            if not run.options.json:
                raise CannotRun(cannot_open(failure.error)) from failure
        error = to_aws_error(failure)
    return write_account_files(run, unaudited_report(run, job, error))


def unaudited_report(run: Run, job: AccountJob, error: AwsError | None) -> Report:
    """The report of an account not audited: its history, and any error with its acceptance."""
    report, history = job.report(run.started, error), list[HistoryEntry]()
    with contextlib.suppress(CannotRun):  # the history is empty if the state cannot be read
        history += (run.state(job.account) or AccountState()).history
    acceptance = account_acceptance(run, job.account, report.error)
    return replace(report, error_acceptance=acceptance, history=history)


def note_lost_account(run: Run, job: AccountJob) -> AwsError | None:
    """Notes for the state that an account left or closed; an error if it is news, with findings."""
    state = run.state(job.account)
    if job.error or job.account_status == ACTIVE or not state:
        return None
    nothing = StateChange(run.today, [], {}, set(), {}, 0, {}, state.max_key_age)
    run.changes[job.account] = nothing._replace(account_status=job.account_status)
    if not state.findings or state.account_status == job.account_status:
        return None
    known = counted(len(state.findings), "finding")
    return AwsError(f"Account{job.account_status.title()}", detail=f"its {known} may remain")


UNACCEPTABLE = {*EXPIRED_CODES, "CannotRun", "InternalError", "NotMerged", "NoReport"}


def account_acceptance(run: Run, account: str, error: AwsError | None) -> Acceptance | None:
    """The valid acceptance of an account that was not opened, noted as used; None without one."""
    if not error or error.code in UNACCEPTABLE:
        return None
    with contextlib.suppress(CannotRun):
        for acceptance in run.acceptances(account):
            valid = not acceptance.until or acceptance.until >= run.today
            if valid and account and acceptance.matches(account, NOT_CHECKED_END, gap=True):
                run.note_used_acceptances([acceptance], account)
                return acceptance
    return None


def audit_all(run: Run, jobs: list[AccountJob], progress: Progress) -> list[Report]:
    """Audits all accounts side by side, and returns their reports in the order of the jobs."""
    # with several accounts at once, no progress of single checks is shown
    silent = functools.partial(show_progress, 0, False)
    inner, findings = silent if run.multi_account else progress, 0
    with ThreadPoolExecutor(ACCOUNTS_AT_ONCE) as pool:
        futures = [pool.submit(audit_safely, run, job, inner) for job in jobs]
        for done, future in enumerate(as_completed(futures) if run.multi_account else (), 1):
            findings += len(future.result().rows(FINDING))
            progress(f"{done:,} of {len(jobs):,} accounts, {counted(findings, 'finding')}")
    progress("")
    return [future.result() for future in futures]


# --- merging reports ------------------------------------------------------------------

MAX_RUN_DURATION = timedelta(hours=12)  # a report that began longer ago is of an earlier run
CLOCK_TOLERANCE = timedelta(minutes=10)  # the most by which clocks of two machines differ
MERGE_THREADS = 32  # number of reports that are read at once: S3 takes a while for each


def read_report_file(file: File, keep_ok_rows: bool) -> list[Report]:
    """The reports in a JSON file; a damaged one has an error. CannotRun if all are damaged."""
    with read_errors_as_cannot_run(file):
        data = file.read()
    reports = reports_from_json(data, file)
    return reports if keep_ok_rows else [*map(drop_ok_rows, reports)]


def not_merged_report(report: Report, why: str) -> Report:
    """Warns why a report cannot be merged; returns it with that error and its history, no rows."""
    named = report.name in why  # then the warning does not repeat the name of the file
    warn(f"{report.account} {why}".strip() if named else f"{report.account or report.name} {why}")
    error = AwsError("NotMerged", detail=why)
    return Report(report.account, report.started, report.name, error=error, history=report.history)


def reject_stale(run: Run, report: Report) -> Report:
    """The report; if too old to be of this run, or of the future, one with an error instead."""
    if report.started > run.started + CLOCK_TOLERANCE:
        return not_merged_report(report, f"is of {report.started:%Y-%m-%d %H:%M}, in the future")
    if run.started - report.started > MAX_RUN_DURATION:
        return not_merged_report(report, f"is of {report.started:%Y-%m-%d %H:%M}, before this run")
    return report


def reject_other_questions(reports: list[Report]) -> list[Report]:
    """The reports; each that answers another question than most has an error instead of results.

    A report with fewer checks must not pass for a complete one.
    """
    asked = [one.question and json.dumps(encode(one.question)) for one in reports]
    usual = [question for question, _ in Counter(filter(None, asked)).most_common(1)]
    why = "was asked for other checks, regions or key ages than most"
    return [
        one if question in (None, *usual) else not_merged_report(one, why)
        for one, question in zip(reports, asked, strict=True)
    ]


def files_to_merge(run: Run) -> list[File]:
    """The files of --merge and of its folders, each once even if named twice."""
    files: dict[str, File] = {}
    for place in map(run.file, run.options.merge):
        with read_errors_as_cannot_run(place):
            files |= {one.absolute(): one for one in place.list_json()}
    return [*files.values()]


def read_reports(run: Run) -> tuple[dict[str, Report], list[Report]]:
    """The reports of --merge by account, and reports with an error for what cannot be merged."""
    files, outputs = files_to_merge(run), [run.options.json, run.options.ocsf]
    results = {run.file(name).absolute() for name in outputs if name not in (None, "-")}
    with ThreadPoolExecutor(MERGE_THREADS) as pool:
        futures = [(one, pool.submit(read_report_file, one, run.keeps_ok_rows)) for one in files]
    found, rejected = dict[str, tuple[File, Report]](), list[Report]()
    for file, future in futures:
        try:
            if not future.result():
                warn(f"{file} is an overview of other reports, or empty: it is left out")
            reports = [reject_stale(run, one) for one in future.result()]
        except CannotRun as why:
            unread = Report("", run.started, name=Path(file.absolute()).name)
            rejected.append(not_merged_report(unread, str(why)))
            continue
        if reports and file.absolute() in results:
            raise CannotRun(f"{file} is one of the reports that are merged: it would be replaced")
        for report in reports:
            other, known = found.setdefault(key := report.account or report.name, (file, report))
            if known is not report:
                twice = f"is in {other} and in {file}: the later one counts"
                rejected.append(not_merged_report(replace(report, history=[]), twice))
                found[key] = file, max(known, report, key=lambda one: (not one.error, one.started))
    kept = reject_other_questions([report for _, report in found.values()])
    return {report.account or report.name: report for report in kept}, rejected


def merge_reports(run: Run, jobs: list[AccountJob]) -> list[Report]:
    """The reports of --merge, with errors for what is missing or cannot be merged."""
    reports, rejected = read_reports(run)
    expected = {job.account for job in jobs}
    for account in sorted(reports.keys() - expected) if jobs else ():
        warn(f"{account} is not one of the accounts that were named: its report is merged too")
    reports = {account: run.with_question(report) for account, report in reports.items()}
    for job in jobs:
        report = reports.get(job.account) or missing_report(run, job)
        reports[job.account] = replace(report, name=job.name or report.name)
    if not reports and not rejected:
        raise CannotRun("there is no report to merge")
    return [*reports.values(), *rejected]


def missing_report(run: Run, job: AccountJob) -> Report:
    """A report for an account without one in --merge; notes in the state that it left or closed."""
    if job.account_status == ACTIVE and not job.error:
        return unaudited_report(run, job, AwsError("NoReport", detail="of this run"))
    try:
        return unaudited_report(run, job, note_lost_account(run, job))
    except CannotRun as why:
        return unaudited_report(run, job, to_aws_error(why))


def merged_overview(overview: Overview) -> Overview:
    """The overview of merged reports: start, end, auditors and comparison come from the reports."""
    audited = [report for report in overview.reports if report.auditor_arn or report.results]
    began = min((report.started for report in audited), default=overview.started)
    ends = (report.started + timedelta(seconds=report.seconds) for report in audited)
    seconds = (max(ends, default=began) - began).total_seconds()
    compared = any(report.resolved is not None for report in overview.reports)
    arn = overview.auditor_arn or in_words(sorted(report.auditor_arn for report in audited))
    return replace(overview, started=began, seconds=seconds, with_state=compared, auditor_arn=arn)


# --- main -----------------------------------------------------------------------------


class Outcome(NamedTuple):
    """The result of a run, as AWS Lambda returns it."""

    exit_code: int
    headline: str
    needs_attention: bool
    files: list[str]


def run_program(argv: Sequence[str] | None) -> Outcome:
    """Does a whole run from its arguments to its outcome; CannotRun if there is no report."""
    began, options = time.monotonic(), parse_arguments(argv)
    WRITTEN.clear()
    require_packages()
    gc.set_threshold(100_000)  # garbage collection is slow over botocore's models, frees nothing
    log_calls(options.debug)
    run = Run(options)
    check_before_start(run)
    selection = without_excluded(options, select_accounts(run))
    if options.list:
        numbers = [job.account for job in selection.jobs if job.open]
        run.write("".join(f"{number}\n" for number in numbers).encode(), options.list)
        return Outcome(0, counted(len(numbers), "account"), False, run.written)
    progress = functools.partial(show_progress, began, not options.quiet)
    jobs = selection.jobs
    reports = merge_reports(run, jobs) if options.merge else audit_all(run, jobs, progress)
    return report_outcome(run, make_overview(run, selection, reports, began))


def make_overview(run: Run, selection: Selection, reports: list[Report], began: float) -> Overview:
    """The overview of reports, worst first, without rows that belong to another audited account."""
    overview = Overview(
        reports=sorted(drop_repeated_rows(reports), key=Report.sort_key),
        started=run.started,
        seconds=time.monotonic() - began,
        path=run.file(run.overview_name()).absolute() if run.multi_account else reports[0].workbook,
        multi_account=run.multi_account,
        with_state=bool(run.options.state),
        scope=selection.scope,
        auditor_arn=selection.auditor_arn,
    )
    return merged_overview(overview) if run.options.merge else overview


def report_outcome(run: Run, overview: Overview) -> Outcome:
    """Writes and prints the results, and only then the state, and returns the outcome.

    A run that dies before has remembered nothing: the next run tells its findings as new.
    """
    options, reports = run.options, overview.reports
    failures = [] if overview.multi_account else [*reports[0].file_errors]
    overview = replace(overview, remarks=run.accept_remarks(reports))
    if overview.multi_account:
        path = ""
        if not options.no_workbook:
            path = run.try_write(build_workbook(overview), run.overview_name(), failures)
        overview = replace(overview, path=path)
        if options.csv and "{account}" not in options.csv:
            run.write_csv(csv_files(overview), OVERVIEW_NAME, failures)
    attention = overview.needs_attention()
    warn_of_errors(overview)
    shown = overview.multi_account or not reports[0].error
    if "-" not in (options.json, options.ocsf) and shown and (attention or not options.quiet):
        try:
            print_result(terminal_text(overview, shows_colour(), options.quiet))
        except CannotRun as why:  # printing may fail if the results are in a file
            failures += [] if run.written else [str(why)]
    for remark in () if options.quiet else overview.remarks:
        warn(remark)
    if options.json and (options.merge or "{account}" not in options.json):
        run.try_write(to_json(reports, bool(options.merge)), options.json, failures)
    if options.ocsf:
        write_ocsf(run, reports, failures)
    failures = failures or run.write_states()
    if failures:
        raise CannotRun("; ".join(failures))
    several = f"{overview.scope}: {describe_accounts(reports)}"
    whose = several if overview.multi_account else f"AWS account {reports[0].account}"
    return Outcome(overview.exit_code(), f"{whose}: {headline(overview)}", attention, run.written)


def write_ocsf(run: Run, reports: list[Report], failures: list[str]) -> None:
    """Writes the OCSF events to standard output, to one file, or to one file an account."""
    name, files = run.options.ocsf, defaultdict[str, list[Report]](list)
    for one in reports:
        own = one.account or file_name(one.name)
        files[own if "{account}" in name else OVERVIEW_NAME].append(one)
    for account, found in files.items():
        run.try_write(to_ocsf(found), name, failures, account)


def shows_colour() -> bool:
    """Whether standard output is a terminal with colours, and the user has not refused them.

    https://no-color.org: NO_COLOR counts if it is not empty.
    """
    refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return bool(sys.stdout and sys.stdout.isatty()) and not refused


def warn_of_errors(overview: Overview) -> None:
    """Warns of expired credentials, AWS limits that others use up, a single account not opened."""
    for report in overview.reports:
        prefix = f"{report.account}: " if overview.multi_account else ""
        if report.credentials_expired():
            warn(f"{prefix}the credentials expired during the audit: the rest was {NOT_CHECKED}")
        if any(LIMITS_USED_UP in error.detail for error in report.errors()):
            refused = "AWS refused calls however slowly they were made"
            warn(f"{prefix}{refused}: others use up its limits")
        if report.error and not overview.multi_account:
            warn(cannot_open(report.error))


MIN_BOTO3 = "1.44"  # the oldest boto3 allowed, as at the top of this file and in requirements.txt


def require_packages() -> None:
    """Raises CannotRun if boto3 or xlwt is missing or broken, or boto3 is too old."""
    advice = f"run `{sys.executable or 'python3'} -m pip install --upgrade boto3 xlwt`"
    for name in ("boto3", "xlwt"):
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise CannotRun(f"{error.name or name} is not installed: {advice}") from error
        except Exception as error:
            raise CannotRun(f"{name} is broken ({type(error).__name__}): {advice}") from error
        version = str(getattr(package, "__version__", ""))
        if name == "boto3" and release(version) < release(MIN_BOTO3):
            raise CannotRun(f"boto3 {version} is too old, {MIN_BOTO3} is needed: {advice}")


def release(version: str) -> list[int]:
    """The numbers of a version, so that it can be compared with another."""
    return [int(number) for number in re.findall(r"\d+", version)]


def report_bug(error: Exception) -> str:
    """Prints the traceback of a bug, and returns a line on it and the files that were written."""
    print_traceback(error)
    written = f"written before: {', '.join(WRITTEN)}" if WRITTEN else "nothing was written"
    return f"this is a bug of the script ({type(error).__name__}): no report; {written}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with arguments of the command line, and returns the exit code."""
    try:
        return run_program(argv).exit_code
    except CannotRun as why:
        warn(str(why))
    except Exception as error:
        warn(report_bug(error))
    return 2


def event_arguments(event: object) -> list[str]:
    """The arguments in an event of AWS Lambda; CannotRun if missing or not a list of text."""
    arguments = event.get("arguments") if isinstance(event, dict) else None
    if isinstance(arguments, list) and all(isinstance(one, str) for one in arguments):
        return arguments
    raise CannotRun('bad event: it has to be {"arguments": [...]}, a list of texts')


def lambda_handler(event: dict[str, Any], context: object) -> dict[str, Any]:  # noqa: ARG001
    """Runs the program for AWS Lambda; returns exit code, headline, attention and files in S3.

    The event is `{"arguments": ["--json", "s3://b/{account}.json"]}`, a command line. Attention
    is whether a person should look. Raises CannotRun if there is no report, so that the caller
    can try again or go on without it.
    """
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for relative names: AWS Lambda lets us write only under /tmp
        try:
            outcome = run_program(event_arguments(event))
        except SystemExit:
            raise CannotRun("bad arguments: the log tells which") from None
        except CannotRun as why:
            raise CannotRun(str(why)) from None  # the chained exceptions may hold a secret
        except Exception as error:
            raise CannotRun(report_bug(error)) from None
        finally:
            os.chdir(before)
    kept = [name for name in outcome.files if S3_NAME.fullmatch(name)]
    return outcome._replace(files=kept)._asdict()


OPEN_FILES = 4096  # files and connections wanted: each account has up to CALLERS calls at once
TERMINAL: dict[int, Any] = {}  # the terminal's settings when the run began, by descriptor


def keep_terminal_settings() -> None:
    """Notes the terminal's settings, because a prompt for an MFA code turns the echo off."""
    with contextlib.suppress(ImportError, OSError):
        import termios

        device = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        TERMINAL[device] = termios.tcgetattr(device)


def restore_terminal() -> None:
    """Restores the settings of the terminal, unless another program uses the terminal now."""
    for device, settings in TERMINAL.items():
        import termios

        with contextlib.suppress(OSError, termios.error):
            if os.tcgetpgrp(device) == os.getpgrp():
                termios.tcsetattr(device, termios.TCSANOW, settings)


def exit_now(code: int) -> None:
    """Restores the terminal, and ends the process without waiting for threads.

    Those may wait for AWS. Python does not clean up at its end either: that takes as long as
    the calls of a small audit.
    """
    restore_terminal()
    os._exit(code)


READER_PATIENCE = 1  # most seconds for a message on standard error: its reader may have stopped


def on_signal(number: int, _: object) -> None:
    """Says which files were written, and ends the process with exit code 128 plus the signal."""
    done = f"{in_words(WRITTEN)} written" if WRITTEN else "nothing was written"
    perhaps = f"; perhaps {in_words(sorted(WRITING))}" if WRITING else ""
    text = f"interrupted by {signal.Signals(number).name}: {done}{perhaps}"
    telling = threading.Thread(target=warn, args=[text], daemon=True)
    telling.start()
    telling.join(READER_PATIENCE)
    exit_now(128 + number)  # shells report the end by a signal as 128 plus its number


def run_process() -> None:
    """Runs the program as a process; a bug ends it with 2, because Python would end with 1."""
    try:
        code = exit_code_of_process()
    except Exception as error:
        code = 2
        warn(report_bug(error))
    exit_now(code)


def allow_open_files() -> None:
    """Raises the limit of open files (256 on macOS) to OPEN_FILES, or as far as is allowed."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def exit_code_of_process() -> int:
    """Runs main in a thread, so that signals are heard meanwhile; returns the exit code."""
    if sys.stderr is None:  # without standard error argparse would print on standard output
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    allow_open_files()
    keep_terminal_settings()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, on_signal)
    running = ThreadPoolExecutor(1).submit(main)
    while not running.done():  # an unlimited wait may not hear a signal, on Windows it never does
        wait([running], timeout=0.2)
    code, error = 2, running.exception()
    if isinstance(error, SystemExit):  # argparse raises SystemExit
        code = error.code if isinstance(error.code, int) else 2
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code if error else running.result()


if __name__ == "__main__":
    run_process()
