"""An overview of what others audited, made of their reports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import making
import pytest
import readme
from cloud import DEFAULT_ACCOUNT_ID, Cloud, Fault
from conftest import BUCKET, Clock, fill_small_org, in_an_account
from example import CLOSED, SOEHNE, TOKYO, Organization
from reading import (
    CHECKS_BY_NAME,
    NOW,
    read_accounts,
    read_cells,
    read_column,
    read_sheet,
    rows_by_id,
    summary_facts,
    summary_section,
    summary_table,
    timeless,
)

import security_check
from security_check import SEVERITIES, main, to_json


def audit_each(*numbers: str, checks: Sequence[str] = ()) -> None:
    """Every account by a run of its own, as any engine would do it."""
    for number in numbers:
        files = ["--json", "runs/{account}.json", "--output", "runs/{account}.xls"]
        main(["--account", number, *files, *checks])


@pytest.fixture(scope="module")
def audited(server: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the reports of three accounts about their users, each by a run of its
    own."""
    folder = tmp_path_factory.mktemp("audited")
    with in_an_account(server, folder):
        fill_small_org(server)
        checks = ("--check", "mfa", "--check", "access-keys")
        audit_each(SOEHNE, TOKYO, DEFAULT_ACCOUNT_ID, checks=checks)
    return folder / "runs"


@pytest.fixture
def copy_runs(
    audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Puts the reports of these accounts into `runs`; nobody can be asked anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    def copied(*numbers: str) -> None:
        Path("runs").mkdir()
        for number in numbers:
            shutil.copy(audited / f"{number}.json", "runs")

    return copied


def accounts_sheet(path: str = "o.xls") -> list[dict[str, Any]]:
    return read_sheet(path, "Accounts")


def test_an_overview_of_what_others_audited_is_that_of_one_run(
    cloud: Cloud, small_org: Organization
) -> None:
    audit_each(*small_org.names)
    for folder in ("local", "merged"):
        Path(folder).mkdir()
    main(["--organization", "--output", "runs/local.xls", "--csv", "local"])
    asked = len(cloud.layer.calls)
    merge = ["--organization", "--merge", "runs", "--csv", "merged"]
    assert main([*merge, "--output", "runs/merged.xls"]) == 3
    told = Counter(call.name for call in cloud.layer.calls[asked:])
    assert told.keys() == {"sts:GetCallerIdentity", "organizations:ListAccounts"}
    assert timeless("runs/merged.xls") == timeless("runs/local.xls")
    tables = {path.name: path.read_bytes() for path in Path("local").iterdir()}
    assert tables.keys() >= {f"overview-{name}.csv" for name in (*CHECKS_BY_NAME, "accounts")}
    del tables["overview-accounts.csv"]  # which says how long each audit took
    assert {name: Path("merged", name).read_bytes() for name in tables} == tables


def test_without_a_list_nobody_is_asked_anything(
    copy_runs: Callable[..., None], audited: Path
) -> None:
    copy_runs(SOEHNE, TOKYO)
    files = [f"runs/{SOEHNE}.json", f"runs/{TOKYO}.json"]
    assert main(["--merge", *files, "--output", "o.xls", "--json", "o.json"]) == 1
    documents = json.loads(Path("o.json").read_text())["accounts"]
    each = [json.loads(Path(name).read_text())["accounts"][0] for name in files]
    assert sorted(documents, key=lambda one: str(one["account"])) == each
    books = {row["Account"]: row["Workbook"] for row in accounts_sheet()}
    wanted = {number: str((audited / f"{number}.xls").resolve()) for number in (SOEHNE, TOKYO)}
    assert books == wanted  # in another folder, so not as links
    assert not any(cell.link for row in read_cells("o.xls", "Accounts") for cell in row.values())
    assert "OK" in {row["status"] for one in each for row in rows_by_id(one).values()}
    assert "OK" not in read_column("o.xls", "MFA", "Status")


def test_an_account_of_which_there_is_no_report_is_an_error(
    copy_runs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    copy_runs(SOEHNE)
    given = ["--merge", "runs", "--account", SOEHNE, "--account", TOKYO]
    assert main([*given, "--output", "o.xls"]) == 3
    out = capsys.readouterr().out
    assert out.startswith("AWS accounts, ")
    assert "\n1 audited, 1 NOT CHECKED\n" in out
    (row,) = (row for row in accounts_sheet() if row["Account"] == TOKYO)
    assert row["Result"] == "NoReport: of this run"


def test_what_the_state_remembers_of_an_account_without_a_report_is_shown(
    cloud: Cloud, small_org: Organization, clock: Clock
) -> None:
    state, check = ["--state", "state/{account}.json"], ["--check", "mfa"]
    clock.set("2030-08-01")
    main(["--organization", *check, *state, "--output", "o.xls"])
    before = Path(f"state/{TOKYO}.json").read_bytes()
    clock.set("2030-09-01")
    audit = ["--account", SOEHNE, *check, *state]
    main([*audit, "--json", "runs/{account}.json", "--output", "x.xls"])
    main(["--merge", "runs", *state, "--account", SOEHNE, "--account", TOKYO, "--output", "m.xls"])
    august, september = summary_table("m.xls", "Date")
    assert (august["Date"], september["Date"]) == ("2030-08-01", "2030-09-01")
    tokyo, soehne = last_entry(TOKYO), last_entry(SOEHNE)
    assert (tokyo["day"], soehne["day"]) == ("2030-08-01", "2030-09-01")
    for severity in SEVERITIES:
        assert (september[severity] or 0) == tokyo["open"][severity] + soehne["open"][severity]
    assert september["NOT CHECKED"] == 1
    assert Path(f"state/{TOKYO}.json").read_bytes() == before


def last_entry(number: str) -> Any:
    """The last entry in the history of an account's state."""
    accounts = json.loads(Path(f"state/{number}.json").read_text())["accounts"]
    return accounts[number]["history"][-1]


def test_a_run_began_with_its_first_account_and_ended_with_its_last(
    copy_runs: Callable[..., None], clock: Clock
) -> None:
    copy_runs(SOEHNE, TOKYO)
    clock.set("2026-01-01T07:00:00")
    for number, minute in ((SOEHNE, 45), (TOKYO, 15)):
        began = {"started": f"2026-01-01T06:{minute}:00+00:00", "seconds": 30.0}
        edited(Path(f"runs/{number}.json"), lambda d, began=began: d["accounts"][0].update(began))
    main(["--merge", "runs", "--output", "o.xls"])
    told = summary_facts("o.xls")
    assert (told["Started"], told["Duration"]) == ("2026-01-01 06:15 UTC", "1830 s")


def edited(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def moved(document: Any, **by: int) -> None:
    """Another time at which the audit of the report began."""
    started = datetime.fromisoformat(document["accounts"][0]["started"])
    document["accounts"][0]["started"] = (started + timedelta(**by)).isoformat()


def asked(document: Any, **about: Any) -> None:
    """Another question that the report answers."""
    document["accounts"][0]["question"].update(about)


DAMAGED = "is damaged"
OTHER_QUESTION = "was asked for other checks, regions or key ages than most"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            lambda d: d.update(schema=4), "is of version 4, this script knows 5", id="version"
        ),
        pytest.param(lambda d: d["accounts"][0].pop("home_region"), DAMAGED, id="a field less"),
        pytest.param(lambda d: d["accounts"][0].update(duration=1), DAMAGED, id="a field more"),
        pytest.param(lambda d: d["accounts"][0].update(results=[]), DAMAGED, id="no results"),
        pytest.param(lambda d: moved(d, days=-30), ", before this run", id="of last month"),
        pytest.param(lambda d: moved(d, hours=-13), ", before this run", id="of the night before"),
        pytest.param(lambda d: moved(d, hours=1), ", in the future", id="of a wrong clock"),
        pytest.param(lambda d: asked(d, checks=["mfa"]), OTHER_QUESTION, id="fewer checks"),
        pytest.param(lambda d: asked(d, regions=["eu-west-1"]), OTHER_QUESTION, id="a region"),
        pytest.param(lambda d: asked(d, max_key_age=365), OTHER_QUESTION, id="another key age"),
        pytest.param(lambda d: asked(d, version="0.9"), OTHER_QUESTION, id="another script"),
    ],
)
def test_what_cannot_be_merged_is_one_line_and_the_rest_is_merged(
    copy_runs: Callable[..., None], capsys: pytest.CaptureFixture[str], change: Any, words: str
) -> None:
    copy_runs(SOEHNE, TOKYO, DEFAULT_ACCOUNT_ID)
    edited(Path(f"runs/{TOKYO}.json"), change)
    named = [f"--account={one}" for one in (SOEHNE, TOKYO, DEFAULT_ACCOUNT_ID)]
    assert main(["--merge", "runs", *named, "--output", "o.xls"]) == 3
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert words in line
    assert TOKYO in line
    told = [row["Result"] for row in accounts_sheet() if TOKYO in row["Account"] + row["Name"]]
    assert [one for one in told if one.startswith("NotMerged: ") and words in one]
    assert re.search(r"2 audited, [12] NOT CHECKED", said.out)


@pytest.mark.posix  # for how paths are written, as below
def test_an_account_that_is_there_twice(
    copy_runs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    copy_runs(SOEHNE, TOKYO)
    shutil.copy(f"runs/{TOKYO}.json", "runs/again.json")
    edited(Path("runs/again.json"), lambda document: moved(document, hours=-1))
    assert main(["--merge", "runs", "--output", "o.xls"]) == 3
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert f"{TOKYO} is in runs/{TOKYO}.json and in runs/again.json: the later one counts" in line
    assert "2 audited, 1 NOT CHECKED" in said.out


def test_an_account_that_was_accepted_stays_accepted(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("accept.txt").write_text(f"{TOKYO}/not-checked # closes soon\n")
    Path("runs").mkdir()
    cloud.layer.faults = [Fault("AccessDenied", "sts", "AssumeRole", status=403)]
    for number in (TOKYO, DEFAULT_ACCOUNT_ID):
        options = ["--account", number, "--accept", "accept.txt", "--check", "ec2-classic"]
        main([*options, "--json", f"runs/{number}.json", "--no-workbook"])
    capsys.readouterr()
    assert main(["--merge", "runs", "--json", "all.json", "--output", "o.xls"]) == 0
    assert read_accounts("all.json")[TOKYO]["error_acceptance"]["reason"] == "closes soon"
    told = capsys.readouterr().out
    assert told.splitlines()[2] == "1 audited, 1 ACCEPTED"
    assert "1 NOT CHECKED but accepted" in told
    assert "Not checked:" not in told
    (row,) = (one for one in read_sheet("o.xls", "Accounts") if one["Account"] == TOKYO)
    assert row["Status"] == "ACCEPTED"
    assert row["Result"].endswith("(accepted closes soon)")
    assert summary_section("o.xls", "Not checked") == []


@pytest.mark.parametrize("option", ["--json", "--ocsf"])
def test_a_report_that_is_merged_is_not_replaced(
    copy_runs: Callable[..., None], capsys: pytest.CaptureFixture[str], option: str
) -> None:
    copy_runs(TOKYO)
    before = Path(f"runs/{TOKYO}.json").read_bytes()
    assert main(["--merge", "runs", "--no-workbook", option, f"runs/{TOKYO}.json"]) == 2
    assert f"runs/{TOKYO}.json is one of the reports that are merged" in capsys.readouterr().err
    assert Path(f"runs/{TOKYO}.json").read_bytes() == before
    for _ in range(2):  # the overview of last month may be replaced
        assert main(["--merge", "runs", "--no-workbook", "--json", "runs/all.json"]) == 1


def test_a_file_that_is_named_twice_is_read_once(
    copy_runs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    copy_runs(TOKYO)
    named = ["runs", f"runs/{TOKYO}.json", f"runs/../runs/{TOKYO}.json"]
    assert main(["--merge", *named, "--output", "o.xls"]) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.posix
@pytest.mark.parametrize(
    "content", ["", "<html>", "[" * 100_000, "[1]", "\x00\udcff"], ids=lambda text: text[:6]
)
def test_a_file_that_is_no_report_is_an_error(
    copy_runs: Callable[..., None], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    copy_runs(TOKYO)
    Path("runs/odd.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["--merge", "runs", "--output", "o.xls"]) == 3
    said = capsys.readouterr()
    words = "runs/odd.json is damaged, or no report of this script"
    (line,) = said.err.splitlines()
    assert line.endswith(words)
    assert "1 audited, 1 NOT CHECKED" in said.out
    (row,) = (row for row in accounts_sheet() if row["Name"] == "odd.json")
    assert row["Result"] == f"NotMerged: {words}"


@pytest.mark.posix
def test_the_name_of_a_file_that_is_no_report_is_said_once(
    copy_runs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    copy_runs(TOKYO)
    Path("runs/odd.json").write_text("<html>")
    main(["--merge", "runs", "--output", "o.xls"])
    assert capsys.readouterr().err.count("odd.json") == 1


@pytest.mark.posix
def test_a_damaged_account_in_a_file_costs_only_that_account(
    copy_runs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    copy_runs(SOEHNE, TOKYO)
    soehne, tokyo = (json.loads(Path(f"runs/{one}.json").read_text()) for one in (SOEHNE, TOKYO))
    tokyo["accounts"][0]["results"][0]["rows"][0]["severity"] = "Terrible"
    both = soehne | {"accounts": [*soehne["accounts"], *tokyo["accounts"]]}
    Path("both.json").write_text(json.dumps(both))
    assert main(["--merge", "both.json", "--output", "o.xls"]) == 3
    assert "1 audited, 1 NOT CHECKED" in capsys.readouterr().out
    results = {row["Account"]: row["Result"] for row in accounts_sheet()}
    assert results[SOEHNE].startswith("audited in ")
    assert results[TOKYO] == "NotMerged: its report in both.json is damaged"


@pytest.mark.parametrize("given", [[], ["--account", TOKYO]], ids=["", "with an account"])
def test_a_folder_that_is_not_there_is_no_overview(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    assert main(["--merge", "none", *given, "--output", "o.xls"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "security_check.py: cannot read none: No such file or directory"
    assert not Path("o.xls").exists()


def test_a_folder_without_a_report_is_no_overview(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    assert main(["--merge", "runs", "--output", "o.xls"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "security_check.py: there is no report to merge"


def test_an_empty_prefix_and_folders_in_it(cloud: Cloud, bucket: Any) -> None:
    assert main(["--merge", f"s3://{BUCKET}/runs/", "--output", "o.xls"]) == 2
    main(["--json", f"s3://{BUCKET}/runs/deeper/x.json", "--output", "x.xls"])
    assert main(["--merge", f"s3://{BUCKET}/runs/", "--output", "o.xls"]) == 2
    for prefix in ("runs/deeper", "runs/deeper/", "runs/deeper/x.json"):
        assert main(["--merge", f"s3://{BUCKET}/{prefix}", "--output", "o.xls"]) == 1


def test_more_reports_than_s3_lists_at_once(
    cloud: Cloud, bucket: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.set(f"{NOW:%Y-%m-%dT%H:%M:%S}")  # the time of the reports
    for n in range(7):
        report = making.report(account=f"{n:012}", account_status="SUSPENDED", results=())
        bucket.put_object(Bucket=BUCKET, Key=f"{n}.json", Body=to_json([report]))
    fetch = security_check.Account.fetch

    def three_at_once(*args: Any, **params: Any) -> Any:
        return fetch(*args, **{**params, "page_size": 3})

    monkeypatch.setattr(security_check.Account, "fetch", three_at_once)
    assert main(["--merge", f"s3://{BUCKET}", "--output", "o.xls"]) == 3  # none was audited
    assert cloud.layer.count()["s3:ListObjectsV2"] == 3
    found = {row["Account"]: row["Status"] for row in accounts_sheet()}
    assert found == {f"{n:012}": "SUSPENDED" for n in range(7)}


@pytest.mark.posix
def test_the_commands_of_the_readme_make_the_overview_of_one_run(
    cloud: Cloud, small_org: Organization, tmp_path: Path
) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "security_check.py").symlink_to(security_check.__file__)
    needed = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        ["/bin/sh", "-c", readme.block("sh", "xargs")],
        env={**needed, **cloud.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 3
    assert f"AccessDenied: sts AssumeRole arn:aws:iam::{CLOSED}" in ran.stderr
    (made,) = Path("runs").iterdir()
    main(["--organization", "--output", f"{made}/local.xls"])
    assert timeless(made / "overview.xls") == timeless(made / "local.xls")
