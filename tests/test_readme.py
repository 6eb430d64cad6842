"""What the README says, held to the code."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import readme
from cloud import DEFAULT_ACCOUNT_ID, Call, Cloud, Fault
from conftest import in_an_account
from example import fill, fill_organization
from readme import TOP

import security_check
from security_check import CHECKS, IAM_ACTION_NAMES, main

SOURCE = (TOP / "security_check.py").read_text()

# What the account itself allows, what its auditor needs for others, and whom a role trusts.
POLICY = json.loads(readme.block("json", "cloudtrail:DescribeTrails"))["Statement"]
AUDITORS = json.loads(readme.block("json", "sts:AssumeRole", without="Principal"))["Statement"]
TRUST = json.loads(readme.block("json", "sts:AssumeRole", "Principal"))["Statement"]
ALLOWED = POLICY[0]["Action"]


def actions_of(calls: Iterable[Call]) -> set[str]:
    """The IAM actions behind the calls, without the call that needs no permission."""
    names = {IAM_ACTION_NAMES.get(call.name, call.name) for call in calls}
    return names - {"sts:GetCallerIdentity"}


class Demo(NamedTuple):
    """What is said of the demo account, and what is asked with and without its credential
    report."""

    out: str
    asked: set[str]


@pytest.fixture(scope="class")
def demo(server: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out, unused = io.StringIO(), io.StringIO()
    with in_an_account(server, tmp_path_factory.mktemp("demo")) as cloud:
        fill(cloud)
        cloud.layer.calls.clear()
        with contextlib.redirect_stdout(out):
            main(["--output", "x.xls"])
        cloud.layer.faults = [Fault("AccessDenied", "iam", "GetCredentialReport")]
        with contextlib.redirect_stdout(unused):
            main(["--output", "x.xls"])
        return Demo(out.getvalue(), actions_of(cloud.layer.calls))


class TestDemoAccount:
    """Of two runs."""

    def test_the_policy_allows_what_a_run_asks_and_nothing_else(self, demo: Demo) -> None:
        assert demo.asked == {*ALLOWED}
        assert sorted(ALLOWED) == ALLOWED

    def test_the_worst_findings_are_those_of_the_demo(self, demo: Demo) -> None:
        title, told = readme.block("console", "Worst:").split("\n", 1)
        worst = demo.out.partition(f"{title}\n")[2].partition("\n  and ")[0]
        assert re.sub(r"sg-\w+", "", told) in re.sub(r"sg-\w+", "", worst)


@pytest.mark.first
def test_the_policies_of_an_organization_allow_what_its_run_asks_and_nothing_else(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_organization(cloud)
    main(["--organization", "--output", "x.xls"])
    said, told = (
        [(line[:12], *line.split()[-4:]) for line in text.splitlines()]  # without names
        for text in (capsys.readouterr().out, readme.block("console", "10 audited"))
    )
    assert told == said[2 : 2 + len(told)]
    here = [call for call in cloud.layer.calls if call.account == DEFAULT_ACCOUNT_ID]
    others = [call for call in cloud.layer.calls if call.account != DEFAULT_ACCOUNT_ID]
    assert actions_of(others) <= {*ALLOWED}
    assert actions_of(here) - {*ALLOWED} == {statement["Action"] for statement in AUDITORS}
    (entered,) = (one["Resource"] for one in AUDITORS if one["Action"] == "sts:AssumeRole")
    assert entered == f"arn:aws:iam::*:role/{security_check.DEFAULT_ROLE}"


def test_the_template_of_the_role_is_the_readmes() -> None:
    text = (TOP / "tests/deploy/role.yaml").read_text()
    assert re.findall(r"^ +- (\w+:\w+)$", text, re.MULTILINE) == ALLOWED
    (trust,) = TRUST
    assert [*trust["Condition"]["StringEquals"]] == re.findall(r"(aws:Principal\w+):", text)
    assert f"Default: {security_check.DEFAULT_ROLE}" in text
    parameters = re.findall(r"^  (\w+):\n    Type: String", text, re.MULTILINE)
    command = readme.block("sh", "create-stack-set", "role.yaml")
    assert {"RoleName", "ExternalId", *re.findall(r"ParameterKey=(\w+)", command)} == {*parameters}


@pytest.mark.first
def test_cfn_lint_has_nothing_to_say_about_the_templates() -> None:
    lint = [str(Path(sys.executable).parent / "cfn-lint"), "--include-checks", "I", "--"]
    ran = subprocess.run(
        [*lint, "role.yaml", "organization.yaml"],
        cwd=TOP / "tests/deploy",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_the_policy_only_reads() -> None:
    for action in ALLOWED:
        operation = action.partition(":")[2]
        assert re.match(r"(Describe|Get|List|GenerateCredentialReport$)", operation), action


def test_the_table_of_sheets_is_the_checks() -> None:
    told = [(title, name) for title, name, *_ in readme.table("sheet")]
    checks = [(check.title, check.name) for check in CHECKS]
    assert told == [("Summary", "-"), *checks, ("Controls", "-"), ("Resolved", "-")]


def test_the_exit_codes_are_the_helps() -> None:
    told = dict(re.findall(r"^  (\d)  (.*)$", security_check.EPILOG, re.MULTILINE))
    assert dict(readme.table("code")) == told


def test_the_statuses_are_the_workbooks() -> None:
    assert {status for status, _ in readme.table("status")} == set(security_check.STATUS_HELP)


def test_numbers_in_words_are_the_codes() -> None:
    waits = f"waits {security_check.CONNECT_TIMEOUT} seconds for a connection"
    for words in (
        f"{waits} and {security_check.READ_TIMEOUT} for an answer",
        f"is tried {security_check.ATTEMPTS} times",
        f"holds {security_check.MAX_ROWS:,} rows a sheet",
        f"{security_check.MAX_CELL_TEXT:,} characters a cell",
        f"{security_check.MAX_KEY_AGE} days unless told",
        f"within {security_check.DUE_SOON.days} days is OK",
        "every active account, eight side by side",
    ):
        assert readme.says(words), words
    assert security_check.ACCOUNTS_AT_ONCE == 8


def test_requirements_are_the_same_wherever_they_stand() -> None:
    (text,) = re.findall(r"^# /// script\n(.*?)^# ///$", SOURCE, re.MULTILINE | re.DOTALL)
    # TOML that is JSON too: Python 3.10 has no tomllib
    script = dict(re.findall(r"^# (\S+) = (.*)$", text, re.MULTILINE))
    packages = json.loads(script["dependencies"])
    assert packages == (TOP / "requirements.txt").read_text().split()
    assert json.loads(script["requires-python"]) == ">=3.10"
    assert {re.split(r"\W", name)[0] for name in packages} == {"boto3", "xlwt"}


def test_ci_runs_the_readmes_own_test_command() -> None:
    command = readme.block("sh", "python3 -m venv", "-m pytest -q -n auto tests", without="ruff")
    assert command.strip() in (TOP / ".ci/run").read_text()


@pytest.mark.parametrize(
    ("requirements", "runs"),
    [
        ("tests/requirements-demo.txt", "tests/demo.py"),
        ("tests/requirements.txt", "-m pytest -q -n auto tests"),
        ("requirements.txt", "security_check.py"),
    ],
)
def test_what_is_pasted_installs_and_runs(requirements: str, runs: str) -> None:
    words = ("python3 -m venv .venv", f"pip install -q -r {requirements}", f"python {runs}")
    assert any(all(word in text for word in words) for text in readme.blocks("sh"))
    assert all((TOP / name).is_file() for name in (requirements, runs) if name[0] != "-")


def test_the_accept_file_of_the_readme_is_one() -> None:
    text = readme.block("text", " until ")
    assert len(security_check.parse_accept_file(text, "README.md")) == 4


def test_what_the_readme_leads_to_is_there() -> None:
    assert [target for _, target in readme.links() if not (TOP / target).is_file()] == []
    pictures = [target for is_picture, target in readme.links() if is_picture]
    assert len(pictures) == 2
    assert all((TOP / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_top_level_holds_what_it_may() -> None:
    allowed = {"security_check.py", "requirements.txt", "README.md", "tests", "LICENSE"}
    names = {path.name for path in TOP.iterdir() if not path.name.startswith(".")}
    assert {name for name in names if not name.endswith((".xls", "__pycache__"))} == allowed
