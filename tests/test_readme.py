"""What the README says, held to the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cloud import DEFAULT_ACCOUNT_ID, Cloud, Fault
from example import fill, fill_organization

import security_check
from security_check import ACTIONS, CHECKS, main

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()
SOURCE = (TOP / "security_check.py").read_text()


def block(language: str, number: int = 0) -> str:
    found = re.finditer(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [match[1] for match in found][number]


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose header begins so."""
    (text,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [
        [cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in text.splitlines()
    ]


def test_the_policy_allows_what_a_run_asks_and_nothing_else(cloud: Cloud) -> None:
    fill(cloud)
    cloud.layer.calls.clear()
    main(["--output", "x.xls"])
    cloud.layer.faults = [Fault("AccessDenied", "iam", "GetCredentialReport")]
    main(["--output", "x.xls"])
    asked = {ACTIONS.get(call, call) for call in cloud.layer.count()} - {"sts:GetCallerIdentity"}
    allowed = json.loads(block("json"))["Statement"][0]["Action"]
    assert asked == set(allowed)
    assert allowed == sorted(allowed)


def test_the_policies_of_an_organization_allow_what_its_run_asks_and_nothing_else(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_organization(cloud)
    main(["--organization", "--output", "x.xls"])
    said, told = (
        [(line[:12], *line.split()[-4:]) for line in text.splitlines()]  # without names
        for text in (capsys.readouterr().out, block("console", 2))
    )
    assert told == said[: len(told)]
    policy, ours, _ = (json.loads(block("json", number))["Statement"] for number in range(3))
    asked: dict[bool, set[str]] = {True: set(), False: set()}
    for call in cloud.layer.calls:
        asked[call.account == DEFAULT_ACCOUNT_ID].add(ACTIONS.get(call.name, call.name))
    assert asked[False] <= set(policy[0]["Action"])
    added = {statement["Action"] for statement in ours}
    assert asked[True] - set(policy[0]["Action"]) - {"sts:GetCallerIdentity"} == added
    (entered,) = (one["Resource"] for one in ours if one["Action"] == "sts:AssumeRole")
    assert entered == f"arn:aws:iam::*:role/{security_check.ROLE}"


def test_the_template_of_the_role_is_the_readmes() -> None:
    text = (TOP / "tests/deploy/role.yaml").read_text()
    actions = re.findall(r"^ +- (\w+:\w+)$", text, re.MULTILINE)
    assert actions == json.loads(block("json"))["Statement"][0]["Action"]
    trust = json.loads(block("json", 2))["Statement"][0]
    assert [*trust["Condition"]["StringEquals"]] == re.findall(r"(aws:Principal\w+):", text)
    assert f"Default: {security_check.ROLE}" in text
    parameters = re.findall(r"^  (\w+):\n    Type: String", text, re.MULTILINE)
    assert {"RoleName", *re.findall(r"ParameterKey=(\w+)", block("sh", 3))} == {*parameters}


@pytest.mark.parametrize("template", ["role.yaml", "organization.yaml"])
def test_cfn_lint_has_nothing_to_say_about_the_templates(template: str) -> None:
    lint = [str(Path(sys.executable).parent / "cfn-lint"), "--include-checks", "I", "--", template]
    ran = subprocess.run(lint, cwd=TOP / "tests/deploy", capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_the_policy_only_reads() -> None:
    for action in json.loads(block("json"))["Statement"][0]["Action"]:
        operation = action.partition(":")[2]
        assert re.match(r"(Describe|Get|List|GenerateCredentialReport$)", operation), action


def test_the_table_of_sheets_is_the_checks() -> None:
    told = [(title, name) for title, name, *_ in table("sheet")]
    checks = [(check.title, check.name) for check in CHECKS]
    assert told == [("Summary", "-"), *checks, ("Controls", "-"), ("Resolved", "-")]


def test_the_table_of_options_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    known = re.findall(r"^  (--\S+(?: [A-Z]+)?)", capsys.readouterr().out, re.MULTILINE)
    assert [option for option, _ in table("option")] == known


def test_the_exit_codes_are_the_helps() -> None:
    told = dict(re.findall(r"^  (\d)  (.*)$", security_check.EPILOG, re.MULTILINE))
    assert dict(table("code")) == told


def test_the_statuses_are_the_workbooks() -> None:
    assert {status for status, _ in table("status")} == set(security_check.MEANING)


def test_numbers_in_words_are_the_codes() -> None:
    waits = f"waits {security_check.CONNECT_TIMEOUT} seconds for a connection"
    assert f"{waits} and {security_check.READ_TIMEOUT} for an answer" in README
    assert f"is tried {security_check.ATTEMPTS} times" in README
    assert f"holds {security_check.MAX_ROWS:,} rows a sheet" in README
    assert f"{security_check.MAX_TEXT:,} characters a cell" in README
    assert f"{security_check.MAX_KEY_AGE} days unless told" in README
    assert f"within {security_check.SOON.days} days is OK" in README
    assert security_check.ACCOUNTS_AT_ONCE == 8
    assert "every active account, eight side by side" in README


def test_requirements_are_the_same_wherever_they_stand() -> None:
    (text,) = re.findall(r"^# /// script\n(.*?)^# ///$", SOURCE, re.MULTILINE | re.DOTALL)
    # TOML that is JSON too: Python 3.10 has no tomllib
    script = dict(re.findall(r"^# (\S+) = (.*)$", text, re.MULTILINE))
    packages = json.loads(script["dependencies"])
    assert packages == (TOP / "requirements.txt").read_text().split()
    assert json.loads(script["requires-python"]) == ">=3.10"
    assert {re.split(r"\W", name)[0] for name in packages} == {"boto3", "xlwt"}


def test_ci_runs_the_readmes_own_test_command() -> None:
    commands = [block("sh", number).strip() for number in range(3)]
    assert commands[1] in (TOP / ".ci/run").read_text()
    assert [command.split(" && ")[-1].split(" ", 1)[1] for command in commands] == [
        "tests/demo.py",
        "-m pytest -q -n auto tests",
        "security_check.py",
    ]


def test_the_accept_file_of_the_readme_is_one() -> None:
    (text,) = re.findall(r"^```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(security_check.acceptances(text, "README.md")) == 4


def test_the_pictures_are_there() -> None:
    pictures = re.findall(r"!\[.*\]\((.*)\)", README)
    assert len(pictures) == 2
    assert all((TOP / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_top_level_holds_what_it_may() -> None:
    allowed = {"security_check.py", "requirements.txt", "README.md", "tests", "LICENSE"}
    names = {path.name for path in TOP.iterdir() if not path.name.startswith(".")}
    assert {name for name in names if not name.endswith((".xls", "__pycache__"))} == allowed


def test_the_worst_findings_are_those_of_the_demo(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(cloud)
    main(["--output", "x.xls"])
    title, told = block("console").split("\n", 1)
    worst = capsys.readouterr().out.partition(f"{title}\n")[2].partition("\n  and ")[0]
    assert re.sub(r"sg-\w+", "", told) in re.sub(r"sg-\w+", "", worst)
