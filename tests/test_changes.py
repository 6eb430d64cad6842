"""From month to month: every finding is new, worse, better, known, resolved or not looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import security_check
from security_check import (
    BETTER,
    CHECKS,
    FINDING,
    NEW,
    WORSE,
    AccountState,
    AuditInput,
    AwsError,
    CheckResult,
    ControlFinding,
    KnownFinding,
    Message,
    Row,
    apply_change,
    apply_state,
    diff_with_state,
    is_worse,
    vanished_findings,
    with_unlisted_regions,
)

GROUPS = next(one for one in CHECKS if one.name == "security-groups")
AUGUST, SEPTEMBER = "2030-08-01", "2030-09-01"
DENIED = AwsError("AccessDenied", "ec2", "DescribeSecurityGroups")
PARTS = ("eu-west-1", "us-east-1")


@dataclass
class Asked:
    """All that a comparison asks of the account: how old a key may be."""

    max_key_age: int = 90


def rule(
    group: str = "sg-1",
    ports: str = "TCP/22",
    *,
    region: str = "eu-west-1",
    severity: str = "Critical",
    control: str = "EC2.19",
    extent: tuple[str, ...] = ("0.0.0.0/0",),
    **more: Any,
) -> Row:
    message = Message("lets the whole Internet reach ", ports)
    item = f"{group}/{ports}"
    return Row(
        region, item, {}, message, severity,
        control_findings=(ControlFinding(control, group),),
        extent=frozenset(extent), resource=f"{region}/{group}", **more,
    )  # fmt: skip


def refused(item: str = "", region: str = "eu-west-1") -> Row:
    return Row(region, item, {}, error=DENIED)


def result(*rows: Row, targets: tuple[str, ...] = PARTS, **more: Any) -> CheckResult:
    failed = {row.target for row in rows if row.error and not row.item}
    return CheckResult(GROUPS, [*rows], regions=targets, failed_targets=failed, **more)


def month(
    state: AccountState, found: CheckResult, day: str, max_key_age: int = 90
) -> tuple[CheckResult, AccountState]:
    """The result of a month, compared with the state, and the state after it."""
    found = with_unlisted_regions(found, state)
    compared = apply_state(found, state, day)
    asked: Any = Asked(max_key_age)
    change = diff_with_state([compared], AuditInput([GROUPS], [], state, day), asked, {})
    return compared, apply_change(state, change)


def changes(found: CheckResult) -> dict[str, tuple[str, str]]:
    """How each finding changed, and what it was before, by the end of its ID."""
    return {row.item: (row.change, row.was) for row in found.rows if row.status == FINDING}


def after_august(*rows: Row) -> AccountState:
    _, state = month(AccountState(since={GROUPS.name: "2030-07-01"}), result(*rows), AUGUST)
    return state


SSH = "Lets the whole Internet reach TCP/22"


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        pytest.param([], [rule()], {"sg-1/TCP/22": (NEW, "")}, id="new"),
        pytest.param([rule()], [rule()], {"sg-1/TCP/22": ("", "")}, id="the same"),
        pytest.param(
            [rule(severity="High")], [rule()], {"sg-1/TCP/22": (WORSE, SSH)}, id="severity rose"
        ),
        pytest.param(
            [rule()], [rule(severity="High")], {"sg-1/TCP/22": (BETTER, SSH)}, id="severity fell"
        ),
        pytest.param(
            [rule(control="IAM.19")],
            [rule(control="IAM.5")],
            {"sg-1/TCP/22": (WORSE, SSH)},
            id="another control at the same severity",
        ),
        pytest.param(
            [rule()],
            [rule(extent=("0.0.0.0/0", "::/0"))],
            {"sg-1/TCP/22": (WORSE, SSH)},
            id="open to more",
        ),
        pytest.param(
            [rule(extent=("0.0.0.0/0", "::/0"))],
            [rule()],
            {"sg-1/TCP/22": (BETTER, SSH)},
            id="open to less",
        ),
        pytest.param(
            [rule()], [rule(ports="TCP/22-30")], {"sg-1/TCP/22-30": (WORSE, SSH)}, id="22 to 22-30"
        ),
        pytest.param(
            [rule(), rule(ports="TCP/80")],
            [rule(ports="ALL/ALL")],
            {"sg-1/ALL/ALL": (WORSE, f"{SSH} and Lets the whole Internet reach TCP/80")},
            id="two rules become one",
        ),
        pytest.param(
            [rule()],
            [rule("sg-2")],
            {"sg-2/TCP/22": (NEW, "")},
            id="another group is another thing",
        ),
        pytest.param(
            [rule()],
            [rule(severity="Critical", fully_read=False)],
            {"sg-1/TCP/22": ("", "")},
            id="more only because something could not be read",
        ),
        pytest.param(
            [rule()],
            [rule(extent=("0.0.0.0/0", "::/0"), fully_read=False)],
            {"sg-1/TCP/22": (WORSE, SSH)},
            id="open to more, though something could not be read",
        ),
        pytest.param(
            [rule()],
            [rule(severity="Medium", extent=("8.0.0.0/7",))],
            {"sg-1/TCP/22": (BETTER, SSH)},
            id="less severe, and open to a part of what it was",
        ),
        pytest.param(
            [rule()],
            [rule(severity="High", extent=("0.0.0.0/0", "::/0"))],
            {"sg-1/TCP/22": (WORSE, SSH)},
            id="less severe, but open to more",
        ),
        pytest.param(
            [rule()],
            [rule(), refused("sg-1/TCP/80")],
            {"sg-1/TCP/22": ("", "")},
            id="beside something that was refused",
        ),
    ],
)
def test_a_month_tells_what_changed(
    before: list[Row], now: list[Row], told: dict[str, tuple[str, str]]
) -> None:
    compared, _ = month(after_august(*before), result(*now), SEPTEMBER)
    assert changes(compared) == told


@pytest.mark.parametrize(
    ("now", "resolved", "remembered"),
    [
        pytest.param(result(), ["sg-1/TCP/22"], [], id="not there any more"),
        pytest.param(result(rule()), [], ["sg-1/TCP/22"], id="still there"),
        pytest.param(result(refused()), [], ["sg-1/TCP/22"], id="its region was refused"),
        pytest.param(
            result(refused("sg-1/TCP/22")), [], ["sg-1/TCP/22"], id="its list was refused"
        ),
        pytest.param(
            result(refused("sg-1/TCP/2")), ["sg-1/TCP/22"], [], id="something else was refused"
        ),
        pytest.param(
            result(targets_complete=False), [], ["sg-1/TCP/22"], id="the regions were not listed"
        ),
        pytest.param(
            result(targets=("us-east-1",)), [], ["sg-1/TCP/22"], id="its region is not enabled"
        ),
        pytest.param(
            result(targets=("us-east-1",), complete=False),
            [],
            ["sg-1/TCP/22"],
            id="another region was asked for",
        ),
        pytest.param(
            result(rule(ports="TCP/22-30")), [], ["sg-1/TCP/22-30"], id="it became another one"
        ),
    ],
)
def test_resolved_is_only_what_was_looked_for(
    now: CheckResult, resolved: list[str], remembered: list[str]
) -> None:
    _, state = month(after_august(rule()), now, SEPTEMBER)
    assert [id.split("/", 2)[2] for id in state.resolved] == resolved
    assert [id.split("/", 2)[2] for id in state.findings] == remembered
    if remembered:
        assert {known.first_seen for known in state.findings.values()} == {AUGUST}


def test_a_run_with_another_key_age_resolves_no_key() -> None:
    keys = next(one for one in CHECKS if one.name == "access-keys")
    old = Row("alice", "AKIA1", {}, Message("key is 100 days old"), "Medium", resource="AKIA1")
    fine = Row("alice", "AKIA1", {}, Message("Key is rotated"), resource="AKIA1")
    _, august = month(
        AccountState(since={keys.name: "2030-07-01"}), CheckResult(keys, [old]), AUGUST
    )
    _, september = month(august, CheckResult(keys, [fine]), SEPTEMBER, max_key_age=365)
    assert not september.resolved
    assert september.findings.keys() == august.findings.keys()
    _, october = month(september, CheckResult(keys, [fine]), "2030-10-01", max_key_age=365)
    assert len(october.resolved) == 1


def test_a_run_without_keys_says_nothing_of_their_age() -> None:
    state = replace(after_august(rule()), max_key_age=365)
    _, after = month(state, result(), SEPTEMBER, max_key_age=90)
    assert len(after.resolved) == 1
    assert after.max_key_age == 365


def test_a_clock_that_went_back_leaves_a_state_that_can_be_read() -> None:
    _, after = month(after_august(rule()), result(), "2029-08-01")
    (*_, entry) = sorted(after.history, key=lambda one: len(one.days_open))
    assert entry.days_open == (0,)


def test_a_user_who_is_renamed_and_gets_a_password_is_worse() -> None:
    mfa = next(one for one in CHECKS if one.name == "mfa")

    def users(name: str, control: str) -> CheckResult:
        row = Row(name, "", {}, Message("has no MFA"), "Medium", resource="AIDA1",
            control_findings=(ControlFinding(control, name),))  # fmt: skip
        return CheckResult(mfa, [row])

    _, august = month(AccountState(since={"mfa": "2030-07-01"}), users("bob", "IAM.19"), AUGUST)
    compared, _ = month(august, users("robert", "IAM.5"), SEPTEMBER)
    assert [row.change for row in compared.rows] == [WORSE]


def test_a_region_that_is_not_enabled_any_more_is_a_row_of_its_own() -> None:
    state = after_august(rule(), rule("sg-2"))
    compared, _ = month(state, result(targets=("us-east-1",)), SEPTEMBER)
    (row,) = compared.rows
    assert row.id == "eu-west-1/not-checked"
    assert row.result == "RegionNotEnabled: its 2 findings may remain"


def test_a_second_run_on_the_day_tells_the_same() -> None:
    state = after_august(rule(severity="High"))
    now = result(rule(), rule("sg-2"))
    first, after = month(state, now, SEPTEMBER)
    second, again = month(after, now, SEPTEMBER)
    told = {"sg-1/TCP/22": (WORSE, SSH), "sg-2/TCP/22": (NEW, "")}
    assert changes(first) == changes(second) == told
    assert again == after
    october, _ = month(again, now, "2030-10-01")
    assert {change for change, _ in changes(october).values()} == {""}


def test_what_was_resolved_is_told_by_every_run_of_the_day() -> None:
    _, morning = month(after_august(rule()), result(), SEPTEMBER)
    _, evening = month(morning, result(), SEPTEMBER)
    assert len(morning.resolved) == 1
    assert morning == evening


def test_the_first_run_has_nothing_to_compare_with() -> None:
    compared, state = month(AccountState(), result(rule()), AUGUST)
    assert changes(compared) == {"sg-1/TCP/22": ("", "")}
    assert state.since == {GROUPS.name: AUGUST}


def test_against_a_state_that_knows_no_severities_nothing_is_worse() -> None:
    old = KnownFinding(AUGUST, "SSH (22) is open", "eu-west-1")
    state = AccountState(
        since={GROUPS.name: AUGUST}, findings={f"{GROUPS.name}/eu-west-1/sg-1/TCP/22": old}
    )
    compared, after = month(state, result(rule()), SEPTEMBER)
    assert changes(compared) == {"sg-1/TCP/22": ("", "")}
    (known,) = after.findings.values()
    assert (known.first_seen, known.severity) == (AUGUST, "Critical")


def test_a_renamed_user_is_the_same_user() -> None:
    mfa = next(one for one in CHECKS if one.name == "mfa")

    def users(name: str) -> CheckResult:
        failed = (ControlFinding("IAM.19", name),)
        message = Message("has no MFA")
        row = Row(name, "", {}, message, "Medium", control_findings=failed, resource="AIDA1")
        return CheckResult(mfa, [row])

    state = AccountState(since={"mfa": "2030-07-01"})
    _, august = month(state, users("alice"), AUGUST)
    compared, september = month(august, users("alicia"), SEPTEMBER)
    (row,) = compared.rows
    assert (row.first_seen, row.change) == (AUGUST, "")
    assert not september.resolved


def test_an_acceptance_that_was_taken_away_is_told() -> None:
    accepted = security_check.Acceptance("*", "", "why")
    state = after_august(replace(rule(), acceptance=accepted, first_seen=AUGUST))
    compared, _ = month(state, result(rule()), SEPTEMBER)
    assert changes(compared) == {"sg-1/TCP/22": (WORSE, f"{SSH} (accepted)")}


def test_two_runs_at_a_time_lose_nothing() -> None:
    state = after_august(rule(), rule("sg-2"))
    asked: Any = Asked()
    given = AuditInput([GROUPS], [], state, SEPTEMBER)
    one, two = (
        diff_with_state([apply_state(result(*rows), state, SEPTEMBER)], given, asked, {})
        for rows in ([rule("sg-2")], [rule(), rule("sg-2"), rule("sg-3")])
    )
    both = apply_change(apply_change(state, two), one)
    assert {id.split("/")[2] for id in both.findings} == {"sg-2", "sg-3"}
    assert {id.split("/")[2] for id in both.resolved} == {"sg-1"}


# --- random worlds -----------------------------------------------------------------------------

RULES = st.fixed_dictionaries({
    "severity": st.sampled_from(security_check.SEVERITIES),
    "extent": st.sets(st.sampled_from(["0.0.0.0/0", "::/0", "public address"]), min_size=1),
    "fully_read": st.booleans(),
})  # fmt: skip
WORLDS = st.dictionaries(
    st.tuples(
        st.sampled_from(PARTS),
        st.sampled_from(["sg-1", "sg-2"]),
        st.sampled_from(["TCP/22", "TCP/80"]),
    ),
    RULES,
    max_size=6,
)
TROUBLE = st.fixed_dictionaries({
    "failed": st.sets(st.sampled_from(PARTS), max_size=1),
    "disabled": st.sets(st.sampled_from(PARTS), max_size=1),
    "unlisted": st.booleans(),
})  # fmt: skip


def looked_at(world: dict[Any, Any], trouble: dict[str, Any]) -> CheckResult:
    """What an audit sees of a world: not all of it."""
    targets = (
        () if trouble["unlisted"] else tuple(one for one in PARTS if one not in trouble["disabled"])
    )
    rows = [
        rule(group, ports, region=region, severity=facts["severity"],
            extent=tuple(facts["extent"]), fully_read=facts["fully_read"])
        for (region, group, ports), facts in sorted(world.items())
        if region in targets and region not in trouble["failed"]
    ]  # fmt: skip
    rows += [refused(region=region) for region in trouble["failed"] if region in targets]
    return result(*rows, targets=targets, targets_complete=not trouble["unlisted"])


@given(st.lists(st.tuples(WORLDS, TROUBLE), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_every_finding_is_in_exactly_one_place(months: list[Any]) -> None:
    state, told = AccountState(), set[str]()
    for number, (world, trouble) in enumerate(months, 1):
        day = f"2030-{number:02}-01"
        found = looked_at(world, trouble)
        vanished = vanished_findings(with_unlisted_regions(found, state), state)
        compared, after = month(state, found, day)
        seen = {GROUPS.id(row): row for row in compared.rows if row.status == FINDING}
        exist = {f"{GROUPS.name}/{'/'.join(thing)}" for thing in world}

        # each finding of now is remembered, with the day on which it was first seen
        assert all(after.findings[id].first_seen == row.first_seen for id, row in seen.items())
        # each finding of before is seen, resolved, became another one, or is remembered
        for id, known in state.findings.items():
            moved = id in vanished and id not in after.resolved
            places = [
                id in seen,
                id in after.resolved,
                moved,
                id in after.findings and id not in seen,
            ]
            assert sum(places) == 1, (id, places)
            if moved:
                became = [row for row in seen.values() if row.resource == known.resource]
                assert any(row.change == WORSE for row in became)
        # nothing that exists is resolved
        assert not after.resolved.keys() & exist
        # everything was told once
        told |= {
            id for id, row in seen.items() if row.change in (NEW, WORSE) or row.first_seen == day
        }
        assert seen.keys() <= told
        # what grew since it was last read completely is told
        for id, row in seen.items():
            before = state.findings.get(id)
            if (
                before
                and row.fully_read
                and is_worse(row, before.severity, before.control, before.extent)
            ):
                assert row.change == WORSE
        state = after
