"""What somebody does first: the README's order, its commands, and what they leave behind."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cloud import Cloud

import security_check
from security_check import main

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()
ORDER = (
    *("Get it and run it", "The demo", "What it checks", "Reading the report", "Exit codes"),
    *("Remediation", "Options", "Every month", "An organization", "Permissions", "Limits"),
    *("Speed", "Development"),
)


def section(title: str) -> str:
    """The text under a heading."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    return str(text)


def blocks(title: str, language: str) -> list[str]:
    """The code of a language under a heading."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)


def test_the_readme_is_short_and_in_the_order_in_which_it_is_needed() -> None:
    assert len(README.splitlines()) <= 300
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == [*ORDER]


def test_the_first_workbook_is_within_the_first_forty_lines() -> None:
    assert "python security_check.py" in "\n".join(README.splitlines()[:40])


def test_every_option_of_the_help_is_in_one_of_the_tables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    known = re.findall(r"^  (--[a-z-]+(?: [A-Z]+)?)", capsys.readouterr().out, re.MULTILINE)
    told = re.findall(r"^\| `(--[^`]+)` \|", section("Options"), re.MULTILINE)
    assert sorted(told) == sorted(known)


def test_what_is_installed_for_the_demo_is_named() -> None:
    (command,) = blocks("The demo", "sh")
    (requirements,) = re.findall(r"-r (\S+)", command)
    assert (TOP / requirements).is_file()
    assert command.split(" && ")[-1].split()[1] == "tests/demo.py"


def test_the_demo_explains_itself_and_makes_no_account_to_do_so() -> None:
    demo = [sys.executable, str(TOP / "tests/demo.py"), "--help"]
    ran = subprocess.run(demo, capture_output=True, text=True, check=True, timeout=120)
    assert "--organization" in ran.stdout
    assert "made up" in ran.stdout
    assert ran.stderr == ""


def test_the_table_for_athena_has_columns_that_are_written(cloud: Cloud, tmp_path: Path) -> None:
    (statement,) = blocks("Options", "sql")
    main(["--check", "cloudtrail", "--ocsf", "f.ndjson", "--output", "o.xls"])
    event = json.loads((tmp_path / "f.ndjson").read_text().splitlines()[0])
    columns = re.search(r"findings \((.*)\) ROW FORMAT", statement)
    assert columns
    for name, kind in re.findall(r"(\w+) (\w+(?:<.*?>+)?)(?:, |$)", columns[1]):
        value = event[name]
        value = value[0] if kind.startswith("array") else value
        for field in re.findall(r"(\w+):", kind):
            assert isinstance(value[field], str), (name, field)


def test_the_message_for_slack_uses_what_is_written(cloud: Cloud, tmp_path: Path) -> None:
    (command,) = blocks("Options", "sh")
    main(["--check", "cloudtrail", "--ocsf", "f.ndjson", "--output", "o.xls"])
    event = json.loads((tmp_path / "f.ndjson").read_text().splitlines()[0])
    program = shlex.split(command)[2]
    for path in re.findall(r"\.((?:[a-z_]+)(?:\[0\]\.[a-z_]+)?)", program):
        name, _, inner = path.partition("[0].")
        assert name in event
        assert not inner or inner in event[name][0]


WRITTEN = (
    *(
        "security_check_123456789012_2030-01-01_0615.xls",
        "overview.xls",
        "state.json",
        "accept.txt",
    ),
    *("report.json", "findings.ndjson", "csv/123456789012-mfa.csv", "mfa.csv"),
    *("runs/2030-01/111122223333.json", "package/boto3/__init__.py", "security_check.zip"),
)


@pytest.mark.parametrize("name", WRITTEN)
def test_git_ignores_what_the_commands_leave_behind(name: str, tmp_path: Path) -> None:
    """Findings are one `git add .` from being pushed."""
    (tmp_path / ".gitignore").write_text((TOP / ".gitignore").read_text())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    ran = subprocess.run(["git", "check-ignore", "-q", name], cwd=tmp_path, check=False)
    assert ran.returncode == 0


def test_git_keeps_what_belongs_to_the_project(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text((TOP / ".gitignore").read_text())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name in ("tests/deploy/report.schema.json", "requirements.txt", "security_check.py"):
        ran = subprocess.run(["git", "check-ignore", "-q", name], cwd=tmp_path, check=False)
        assert ran.returncode == 1, name


def test_the_version_is_in_the_changelog() -> None:
    changes = (TOP / ".github/CHANGELOG.md").read_text()
    assert re.findall(r"^## (.*)$", changes, re.MULTILINE)[0] == security_check.__version__


def test_actions_are_pinned_by_commit() -> None:
    for line in (TOP / ".github/workflows/tests.yml").read_text().splitlines():
        if "uses:" in line:
            assert re.search(r"uses: [\w/-]+@[0-9a-f]{40}  # v\d", line), line


@pytest.mark.posix
def test_the_script_can_be_run_by_its_name() -> None:
    assert (TOP / "security_check.py").stat().st_mode & 0o111
