"""The accept file: what a line covers, what it does not cover any more, and how it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from security_check import (
    ACCEPTED,
    CHECKS,
    FINDING,
    NOT_CHECKED,
    OK,
    Acceptance,
    AccountState,
    AuditInput,
    AwsError,
    CannotRun,
    CheckResult,
    ControlFinding,
    LocalFile,
    Message,
    Row,
    Run,
    account_acceptance,
    apply_acceptances,
    current_id,
    parse_arguments,
    read_accept_file,
)

ACLS = next(one for one in CHECKS if one.name == "s3-acls")
TODAY, NUMBER = "2030-09-01", "123456789012"
DENIED = AwsError("AccessDenied", "s3", "GetBucketAcl")


def grant(
    bucket: str = "b", item: str = "x/READ", severity: str = "Medium", *extent: str,
    control: str = "S3.12", fully_read: bool = True,
) -> Row:  # fmt: skip
    return Row(
        bucket, item, {}, Message("may read it"), severity,
        control_findings=(ControlFinding(control, bucket),),
        extent=frozenset(extent), fully_read=fully_read,
    )  # fmt: skip


def lines(*patterns: str) -> list[Acceptance]:
    """Acceptances; after a blank there may be the last day."""
    parts = (pattern.partition(" ") for pattern in patterns)
    return [Acceptance(pattern, until, "why") for pattern, _, until in parts]


def statuses(
    rows: list[Row], acceptances: list[Acceptance], state: AccountState | None = None
) -> tuple[list[tuple[str, str]], AccountState]:
    """Status and end of the acceptance of each row, and the state with what is covered."""
    state = state or AccountState()
    given = AuditInput([ACLS], acceptances, state, TODAY)
    found, coverage = apply_acceptances([CheckResult(ACLS, rows)], NUMBER, given)
    after = AccountState(coverage=state.coverage | coverage)
    return [(row.status, row.acceptance_ended) for row in found[0].rows], after


@pytest.mark.parametrize(
    ("pattern", "row", "status"),
    [
        pytest.param("s3-acls/b/x/READ", grant(), ACCEPTED, id="exact"),
        pytest.param("s3-acls/*", grant(), ACCEPTED, id="glob"),
        pytest.param(f"{NUMBER}/s3-acls/b/x/READ", grant(), ACCEPTED, id="of this account"),
        pytest.param("111122223333/s3-acls/b/x/READ", grant(), FINDING, id="of another account"),
        pytest.param("s3-acls/b/x/WRITE", grant(), FINDING, id="of something else"),
        pytest.param("s3-acls/b/x/READ 2030-09-01", grant(), ACCEPTED, id="on its last day"),
        pytest.param("s3-acls/b/x/READ 2030-08-31", grant(), FINDING, id="the day after"),
        pytest.param("*", Row("b", "", {}, error=DENIED), NOT_CHECKED, id="a.error by a glob"),
        pytest.param(
            "s3-acls/b/x/READ",
            Row("b", "x/READ", {}, error=DENIED),
            NOT_CHECKED,
            id="a.error of it",
        ),
        pytest.param(
            "s3-acls/*/not-checked",
            Row("b", "", {}, error=DENIED),
            ACCEPTED,
            id="a.error as a.error",
        ),
        pytest.param(
            "*/not-checked",
            Row("<expired>", "", {}, error=AwsError("ExpiredToken")),
            NOT_CHECKED,
            id="expired credentials never",
        ),
        pytest.param(
            "*/not-checked", grant("not-checked", ""), FINDING, id="a name that ends like a gap"
        ),
        pytest.param("*not-checked", grant("x-not-checked", ""), FINDING, id="another such name"),
        pytest.param("s3-acls/x-not*", grant("x-not-checked", ""), ACCEPTED, id="by a glob"),
        pytest.param(
            "s3-acls/x-not-checked", grant("x-not-checked", ""), ACCEPTED, id="by its own ID"
        ),
        pytest.param("*", Row("b", "x/READ", {}, Message("fine")), OK, id="nothing to accept"),
        pytest.param("s3-acls/[b]/*", grant(), ACCEPTED, id="a set of letters"),
    ],
)
def test_a_line_accepts(pattern: str, row: Row, status: str) -> None:
    ((found, _),), _ = statuses([row], lines(pattern))
    assert found == status


WORSE, SEVERER = "does not cover what is worse", "does not cover what is more severe"


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        pytest.param([grant()], [grant()], [""], id="the same"),
        pytest.param(
            [grant(severity="High")], [grant(severity="Low")], [""], id="less severe by now"
        ),
        pytest.param([grant()], [grant(severity="Critical")], [WORSE], id="more severe by now"),
        pytest.param(
            [grant(control="IAM.19")], [grant(control="IAM.5")], [WORSE], id="another control"
        ),
        pytest.param(
            [grant("b", "x/READ", "Medium", "a")],
            [grant("b", "x/READ", "Medium", "a", "b")],
            [WORSE],
            id="a larger extent",
        ),
        pytest.param([grant()], [grant(), grant(item="y/READ")], ["", ""], id="one more like it"),
        pytest.param(
            [grant()],
            [grant(), grant(item="AllUsers/WRITE", severity="Critical")],
            ["", SEVERER],
            id="one more that is more severe than any that it covered",
        ),
        pytest.param(
            [grant(item="AllUsers/READ", severity="Critical", control="S3.2")],
            [
                grant(item="AllUsers/READ", severity="Critical", control="S3.2"),
                grant(item="AllUsers/WRITE", severity="Critical", control="S3.3"),
            ],
            ["", WORSE],
            id="one more that fails another control",
        ),
        pytest.param(
            [grant("b", "x/READ", "Medium", "a")],
            [grant("b", "x/READ", "Medium", "a", "b", fully_read=False)],
            [WORSE],
            id="a larger extent, though something could not be read",
        ),
        pytest.param(
            [grant()],
            [grant(severity="Critical", fully_read=False)],
            [""],
            id="more severe only because something could not be read",
        ),
    ],
)
def test_a_line_covers_what_it_was_about(
    before: list[Row], now: list[Row], told: list[str]
) -> None:
    _, state = statuses(before, lines("s3-acls/*"))
    found, after = statuses(now, lines("s3-acls/*"), state)
    assert [ended for _, ended in found] == told
    again, _ = statuses(now, lines("s3-acls/*"), after)
    assert again == found  # what it did not cover does not become covered by itself
    changed, _ = statuses(now, lines("s3-acls/* 2031-01-01"), after)
    assert {status for status, _ in changed} == {ACCEPTED}  # another line, another decision
    without, _ = statuses(now, lines("s3-acls/*"))
    assert {status for status, _ in without} == {ACCEPTED}  # nothing is remembered


@pytest.mark.parametrize(
    ("patterns", "ended"),
    [
        (("s3-acls/* 2031-01-01", "s3-acls/b/x/READ 2030-08-31"), "expired"),
        (("s3-acls/b/x/READ 2030-08-31", "s3-acls/* 2031-01-01"), "expired"),
        (("s3-acls/b/x/READ", "s3-acls/* 2030-08-31"), ""),
        (("s3-acls/b/*", "s3-acls/* 2030-08-31"), ""),
        (("s3-acls/b/*", f"{NUMBER}/s3-acls/b/x/READ 2030-08-31"), "expired"),
    ],
)
def test_the_most_exact_line_counts(patterns: tuple[str, ...], ended: str) -> None:
    found, _ = statuses([grant()], lines(*patterns))
    assert [why for _, why in found] == [ended]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("mfa/alice", "mfa/alice"),
        (
            "security-groups/eu-west-1/sg-1/TCP/22/0.0.0.0/0",
            "security-groups/eu-west-1/sg-1/TCP/22",
        ),
        ("security-groups/eu-west-1/sg-1/TCP/22/*", "security-groups/eu-west-1/sg-1/TCP/22"),
        ("security-groups/eu-west-1/not-checked", "security-groups/eu-west-1/not-checked"),
        ("security-groups/*", "security-groups/*"),
        ("cloudtrail/eu-west-1/not-enabled", "cloudtrail/eu-west-1"),
        ("cloudtrail/eu-west-1/main", "cloudtrail/eu-west-1/main"),
        ("cloudtrail/*/main", "cloudtrail/*/main"),
        ("s3-acls/b/AllUsers/READ", "s3-acls/b/AllUsers/READ"),
    ],
)
def test_ids_of_version_1_hold(before: str, now: str) -> None:
    assert current_id(before) == current_id(now) == now


def read(tmp_path: Path, content: bytes) -> list[Acceptance]:
    (tmp_path / "accept.txt").write_bytes(content)
    return read_accept_file(LocalFile(tmp_path / "accept.txt"))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\ufeffmfa/a # why\nmfa/b # why\n", id="byte order mark"),
        pytest.param("mfa/a # why\r\nmfa/b # why\r\n", id="CRLF"),
        pytest.param("mfa/a # why\rmfa/b # why", id="CR"),
        pytest.param("# head\n\n  mfa/a\t#why\nmfa/b # why", id="blanks and remarks"),
    ],
)
def test_lines_are_read_however_they_end(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content.encode()) == lines("mfa/a", "mfa/b")


def test_a_reason_may_have_unusual_separators(tmp_path: Path) -> None:
    (line,) = read(tmp_path, "mfa/a # one\u2028two\x85three".encode())
    assert line.reason == "one\u2028two\x85three"


@pytest.mark.parametrize(
    "line",
    [
        *("mfa/a", "mfa/a #", "mfa/a b # why", "mfa/a until # why", "mfa/a until"),
        *("mfa/a until 2030-02-30 # why", "mfa/a until 20301231 # why", "mfa/a until soon # why"),
        *("mfa/a until 0203-01-01 # why", "mfa/a until 2030-8-1 # why"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(CannotRun, match=r"accept\.txt, line 3: "):
        read(tmp_path, f"# head\n\n{line}\n".encode())


def test_six_hundred_lines_and_two_thousand_rows_take_no_time() -> None:
    """fnmatch itself forgets all but 256 patterns: twelve minutes, measured."""
    rows = [grant(f"bucket-{n}") for n in range(2000)]
    found, _ = statuses(rows, lines(*(f"s3-acls/bucket-{n}/*" for n in range(600))))
    assert [status for status, _ in found].count(ACCEPTED) == 600


@pytest.mark.parametrize(
    ("code", "accepted"),
    [
        ("AccessDenied", True),
        ("ExpiredToken", False),
        ("NotMerged", False),
        ("NoReport", False),
        ("CannotRun", False),
        ("InternalError", False),
    ],
)
def test_an_account_is_accepted_only_if_it_may_not_be_opened(
    tmp_path: Path, code: str, accepted: bool
) -> None:
    file = tmp_path / "accept.txt"
    file.write_text(f"{NUMBER}/not-checked # its role comes later\n")
    run = Run(parse_arguments(["--accept", str(file)]))
    assert bool(account_acceptance(run, NUMBER, AwsError(code))) is accepted
