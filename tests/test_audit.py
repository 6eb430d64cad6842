"""Checks are run over targets: rows and their order, and failures that become rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import Canned
from making import finding, fine, not_checked

from security_check import (
    Account,
    AwsCallFailed,
    AwsError,
    Check,
    CheckResult,
    Row,
    TargetKind,
    describe_result,
    run_check,
    to_aws_error,
)


def some_check(rows: Any, targets: Any = ("a", "b", "c"), empty: str = "nothing") -> Check:
    def over(aws: Account) -> Iterator[str]:
        yield from targets() if callable(targets) else targets

    return Check(
        title="Some check",
        targets=TargetKind("things", over),
        columns=("Target", "Value"),
        description="description",
        docs="https://docs.aws.amazon.com/",
        empty_message=empty,
        rows=rows,
    )


def quiet(text: str) -> None:
    """No progress."""


def row(target: str) -> Row:
    return fine(target, cells={"Target": target, "Value": 1})


def results(sheet: CheckResult) -> list[str]:
    return [describe_result(row) for row in sheet.rows]


# --- rows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "id", "status", "level"),
    [
        pytest.param(fine("t"), "t", "OK", "OK", id="fine"),
        pytest.param(fine("t", item="p/q"), "t/p/q", "OK", "OK", id="a part that is fine"),
        pytest.param(finding("t", severity="Low"), "t", "FINDING", "Low", id="finding"),
        pytest.param(
            finding("t", item="p", severity="High"), "t/p", "FINDING", "High", id="of a part"
        ),
        pytest.param(not_checked("t"), "t/not-checked", "NOT CHECKED", "NOT CHECKED", id="gap"),
        pytest.param(
            not_checked("t", item="p"),
            "t/p/not-checked",
            "NOT CHECKED",
            "NOT CHECKED",
            id="gap of a part",
        ),
    ],
)
def test_a_row_says_what_it_is(row: Row, id: str, status: str, level: str) -> None:
    assert (row.id, row.status, row.level) == (id, status, level)


def test_an_error_is_kept_without_the_traceback_that_holds_on_to_the_account() -> None:
    denied = AwsError("AccessDenied", "s3", "ListBuckets")
    try:
        raise AwsCallFailed(denied)
    except AwsCallFailed as failed:
        kept = to_aws_error(failed)
    assert kept is denied
    assert kept.missing_permission == "s3:ListAllMyBuckets"


# --- the runner -------------------------------------------------------------------------


def test_rows_come_in_target_order_whatever_answers_first(aws: Canned) -> None:
    last_has_answered = threading.Event()

    def rows(aws: Account, target: str) -> Iterator[Row]:
        if target == "c":
            last_has_answered.set()
        last_has_answered.wait(timeout=300)
        yield row(target)

    assert run_check(some_check(rows), aws, quiet).rows == [row("a"), row("b"), row("c")]


def test_a_failure_costs_the_rest_of_its_target_and_says_so(aws: Canned) -> None:
    denied = AwsError("AccessDenied", "ec2", "DescribeInstances")

    def rows(aws: Account, target: str) -> Iterator[Row]:
        yield row(target)
        if target == "b":
            raise AwsCallFailed(denied)
        yield row(target)

    sheet = run_check(some_check(rows), aws, quiet)
    unread = not_checked("b", cells={"Target": "b"}, error=str(denied))
    assert sheet.rows == [row("a"), row("a"), row("b"), unread, row("c"), row("c")]
    assert (unread.id, unread.status) == ("b/not-checked", "NOT CHECKED")
    assert describe_result(unread) == "AccessDenied: ec2 DescribeInstances"
    assert (sheet.failed_targets, sheet.targets_complete) == ({"b"}, True)


@pytest.mark.parametrize("code", ["NoSuchEntity", "NoSuchBucket"])
def test_what_vanished_since_it_was_listed_gives_no_row(aws: Canned, code: str) -> None:
    def rows(aws: Account, target: str) -> Iterator[Row]:
        yield row(target)
        if target == "b":
            raise AwsCallFailed(AwsError(code, "s3", "GetBucketAcl"))

    sheet = run_check(some_check(rows), aws, quiet)
    assert sheet.rows == [row("a"), row("c")]
    assert sheet.failed_targets == set()


@pytest.mark.survives_bugs
def test_a_bug_costs_its_target_only_and_leaves_a_traceback(
    aws: Canned, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(aws: Account, target: str) -> Iterator[Row]:
        if target == "b":
            raise KeyError("Surprise")
        yield row(target)

    sheet = run_check(some_check(rows), aws, quiet)
    assert results(sheet) == ["Fine", "InternalError: KeyError", "Fine"]
    assert "Traceback" in capsys.readouterr().err


def test_targets_that_cannot_be_listed_are_a_gap_after_those_that_could(aws: Canned) -> None:
    def targets() -> Iterator[str]:
        yield "a"
        raise AwsCallFailed(AwsError("AccessDenied", "iam", "ListUsers"))

    sheet = run_check(some_check(lambda aws, target: iter([row(target)]), targets), aws, quiet)
    assert results(sheet) == ["Fine", "AccessDenied: iam ListUsers"]
    assert sheet.rows[1].id == "<things>/not-checked"
    assert (sheet.failed_targets, sheet.targets_complete) == ({"<things>"}, False)


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
            raise AwsCallFailed(AwsError("Denied", target))
        yield from ()
        return 10

    check = some_check(rows, targets, empty="nothing among {evaluated} in {targets}")
    assert results(run_check(check, aws, quiet)) == words


def test_expired_credentials_are_said_once_a_check_and_nobody_asks_again(aws: Canned) -> None:
    aws.refuse("iam", "ListAccessKeys", "ExpiredToken")

    def rows(aws: Account, target: str) -> Iterator[Row]:
        yield row(target)
        yield from aws.fetch("iam", "ListAccessKeys", "AccessKeyMetadata", UserName=target)

    check = replace(some_check(rows, [f"user-{n}" for n in range(100)]), threads=1)
    sheet = run_check(check, aws, quiet)
    (expired,) = (found for found in sheet.rows if found.status == "NOT CHECKED")
    assert describe_result(expired) == "ExpiredToken: iam ListAccessKeys"
    assert (expired.id, expired.cells) == ("<expired>/not-checked", {"Target": "100 things"})
    assert set(sheet.failed_targets) == set(check.targets.names(aws))
