"""Where reports go and what they are made of again: names that are filled in, S3, JSON that is
read back, overviews of what others audited, and the function that Lambda calls."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import xlrd
from cloud import DEFAULT_ACCOUNT_ID, Cloud, Fault
from conftest import NOW, assert_refused, audited
from example import MEMBERS, Organization, fill, fill_organization
from hypothesis import given, settings
from hypothesis import strategies as st

import security_check
from security_check import (
    CHECKS,
    CONTROLS,
    SEVERITIES,
    VERDICTS,
    Acceptance,
    CannotRun,
    Command,
    Day,
    Judged,
    LocalFile,
    Report,
    Row,
    S3Object,
    Sheet,
    Unanswered,
    as_json,
    book_of,
    command,
    lambda_handler,
    main,
    read_state,
    report_from,
    reports_in,
    whole_json,
    write_state,
)

README = (Path(__file__).parent.parent / "README.md").read_text()
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
POLICIES = re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
IAM_ALONE = ("--check", "mfa", "--check", "access-keys")
SOEHNE, TOKYO, CLOSED = "111111111111", "222222222222", "888888888888"
BUCKET = "reports"


@pytest.fixture
def few(cloud: Cloud) -> Organization:
    """Three members, of which one cannot be entered, and a bucket for the reports."""
    members = [member for member in MEMBERS if member.number in (SOEHNE, TOKYO, CLOSED)]
    organization = fill_organization(cloud, members=members, management=False)
    cloud.client("s3").create_bucket(Bucket=BUCKET)
    cloud.layer.calls.clear()
    return organization


@pytest.fixture
def bucket(cloud: Cloud) -> Any:
    """A client for S3, where there is a bucket for the reports; it does not count as a call."""
    client = cloud.client("s3")
    client.create_bucket(Bucket=BUCKET)
    cloud.layer.calls.clear()
    return client


def keys(client: Any) -> set[str]:
    return {one["Key"] for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())}


def body(client: Any, key: str) -> bytes:
    found: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return found


def cells(data: bytes) -> dict[str, list[list[Any]]]:
    """All that a workbook shows, but for when the audits were and how long they took."""
    book = xlrd.open_workbook(file_contents=data)
    text = {"Started", "Duration"}
    return {
        sheet.name: [
            [re.sub(r" \d+ s$", "", str(value)) for value in sheet.row_values(n)]
            for n in range(sheet.nrows)
            if sheet.cell_value(n, 0) not in text
        ]
        for sheet in book.sheets()
    }


# --- JSON that is read back ------------------------------------------------------------------

TEXT = st.text(max_size=9)
DAYS = st.dates().map(lambda day: f"{day:%Y-%m-%d}" if day.year > 999 else "2030-01-01")
MOMENTS = st.datetimes(timezones=st.just(timezone.utc))
GAPS = st.builds(Unanswered, TEXT, TEXT, TEXT, TEXT)
COUNTS = st.integers(0, 1000)
ROWS = st.builds(
    Row,
    target=TEXT,
    part=TEXT,
    cells=st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.booleans(), st.none(), MOMENTS)),
    result=TEXT,
    severity=st.sampled_from(["", *SEVERITIES]),
    control=TEXT,
    brief=st.tuples(TEXT, TEXT, TEXT),
    mend=st.one_of(TEXT, TEXT.filter(bool).map(Command)),
    first_seen=st.one_of(st.just(""), DAYS),
    new=st.booleans(),
    acceptance=st.one_of(st.none(), st.builds(Acceptance, TEXT, TEXT, TEXT)),
    lapsed=st.booleans(),
).flatmap(
    lambda row: st.one_of(st.just(row), GAPS.map(lambda gap: replace(row, gap=gap, result="")))
)
REPORTS = st.builds(
    Report,
    number=TEXT,
    started=MOMENTS,
    arn=TEXT,
    home=TEXT,
    aliases=st.one_of(st.lists(TEXT), GAPS),
    regions=st.one_of(st.lists(TEXT), GAPS),
    sheets=st.lists(
        st.builds(Sheet, st.sampled_from(CHECKS), st.lists(ROWS, max_size=3), whole=st.booleans()),
        max_size=2,
    ),
    gone=st.one_of(
        st.none(),
        st.dictionaries(TEXT, st.fixed_dictionaries({"first_seen": DAYS, "result": TEXT})),
    ),
    history=st.lists(
        st.builds(
            Day,
            DAYS,
            st.fixed_dictionaries(dict.fromkeys(SEVERITIES, COUNTS)),
            COUNTS,
            COUNTS,
            st.lists(COUNTS),
        ),
        max_size=2,
    ),
    judged=st.dictionaries(
        st.sampled_from([*CONTROLS]), st.builds(Judged, st.sampled_from(VERDICTS), COUNTS, COUNTS)
    ),
    seconds=st.floats(0, 10_000),
    path=TEXT,
    profile=TEXT,
    name=TEXT,
    state=TEXT,
    error=st.one_of(st.none(), GAPS),
)


def facts(report: Report) -> list[Any]:
    """All of a report, also what does not count where two rows are compared."""
    rows = [[getattr(row, one.name) for one in fields(row)] for row in report.all_rows()]
    commands = [command(row) for row in report.all_rows()]
    return [[getattr(report, one.name) for one in fields(report)], rows, commands]


@settings(max_examples=200, deadline=None)
@given(REPORTS)
def test_a_report_that_was_written_is_read_back_the_same(report: Report) -> None:
    (document,) = json.loads(whole_json([as_json(report)]))["accounts"]
    assert facts(report_from(document)) == facts(report)


def test_the_report_of_the_demo_is_read_back_the_same(cloud: Cloud) -> None:
    fill(cloud)
    Path("accept.txt").write_text("*/eu-west-1/* # known\nmfa/* until 2020-01-01 # over\n")
    state = ["--state", "state.json", "--accept", "accept.txt"]
    audited(*state)
    report = audited(*state)
    assert report.rows("ACCEPTED")
    (document,) = json.loads(whole_json([as_json(report)]))["accounts"]
    assert facts(report_from(document)) == facts(report)
    assert report_from(document).exit_code() == report.exit_code()


def leaves(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything that a document holds, the first few of a list alone."""
    if at:
        yield at
    inner: Any = document.items() if isinstance(document, dict) else ()
    inner = enumerate(document[:2]) if isinstance(document, list) else inner
    for name, value in inner:
        yield from leaves(value, (*at, name))


ODDS: list[Any] = [None, 5, -1.5, float("inf"), "", "x", [], ["x"], {}, {"x": "y"}, True, [[]]]


def test_what_is_damaged_is_said_to_be_and_breaks_nothing(cloud: Cloud, tmp_path: Path) -> None:
    cloud.client("iam").create_user(UserName="alice")
    Path("accept.txt").write_text("mfa/alice # known\n")
    cloud.layer.faults = [Fault("AccessDenied", "iam", "ListAccountAliases")]
    files = ["--json", "x.json", "--output", "x.xls", "--state", "state.json"]
    main([*files, "--accept", "accept.txt", *IAM_ALONE])
    whole = json.loads(Path("x.json").read_text())
    for check in whole["accounts"][0]["checks"]:
        check["rows"] = check["rows"][:1]
    refused = 0
    for way in leaves(whole):
        for odd in ODDS:
            document = copy.deepcopy(whole)
            place = document
            for name in way[:-1]:
                place = place[name]
            place[way[-1]] = odd
            Path("odd.json").write_text(json.dumps(document))
            try:
                reports = reports_in(LocalFile(Path("odd.json")), whole=True)
            except CannotRun as why:
                assert re.match(r"odd\.json is (damaged, or no|of version)", str(why))
                refused += 1
                continue
            results = security_check.Results(reports, NOW, several=True, of="x", path="x.xls")
            assert book_of(security_check.as_one(results, reports)) if reports else not odd
    assert refused > 1000


# --- names that are filled in -----------------------------------------------------------------


def test_names_are_filled_in_here_too(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("decisions").mkdir()
    for number in few.audited:
        Path(f"decisions/{number}.txt").write_text("mfa/deploy # a robot\n")
    names = ["--output", "{date}/{account}.xls", "--json", "{date}/{account}.json"]
    names += ["--csv", "csv/{account}", "--state", "state/{account}-{time}.json"]
    Path("csv").mkdir()
    code = main(["--organization", *names, "--accept", "decisions/{account}.txt"])
    assert code == 3
    (day,) = Path().glob("20??-??-??")
    assert capsys.readouterr().out.splitlines()[-1] == str((day / "overview.xls").resolve())
    assert {path.name for path in day.iterdir()} == {
        "overview.xls",
        *(f"{number}.xls" for number in few.audited),
        *(f"{number}.json" for number in few.names),
    }
    for number in few.audited:
        assert {path.name for path in Path("csv", number).iterdir()} == {
            f"{number}-{check.name}.csv" for check in CHECKS
        }
        (state,) = Path("state").glob(f"{number}-????.json")
        assert [*json.loads(state.read_text())["accounts"]] == [number]
        (account,) = json.loads((day / f"{number}.json").read_text())["accounts"]
        accepted = [row["id"] for check in account["checks"] for row in check["rows"]
            if row["status"] == "ACCEPTED"]  # fmt: skip
        assert accepted == (["mfa/deploy"] if number != DEFAULT_ACCOUNT_ID else [])


def test_one_account_has_its_number_and_its_time_in_its_names(cloud: Cloud) -> None:
    main(["--output", "{account}/{date}/{time}.xls", "--check", "ec2-classic"])
    (path,) = Path().glob("*/*/*.xls")
    assert re.fullmatch(rf"{DEFAULT_ACCOUNT_ID}/\d{{4}}-\d\d-\d\d/\d{{4}}\.xls", path.as_posix())


@pytest.mark.posix
def test_folders_that_are_made_are_for_their_owner_only(cloud: Cloud) -> None:
    main(["--output", "{account}/x.xls", "--check", "ec2-classic"])
    assert Path(DEFAULT_ACCOUNT_ID).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "{acount}.xls"],
        ["--json", "s3://reports"],
        ["--output", "s3://reports/"],
        ["--state", "s3://reports/folder/"],
        ["--output", "s3:/reports/x.xls"],
        ["--accept", "s3://a b/x"],
        ["--csv", "s3:reports"],
        ["--merge"],
        *(["--merge", "x", f"--{name}"] for name in ("region=x", "csv=x", "accept=x", "list=-")),
        ["--merge", "x", "--check", "mfa"],
        ["--merge", "x", "--role", "x"],
        ["--merge", "x", "--max-key-age", "60"],
    ],
    ids=" ".join,
)
def test_bad_names_are_one_line_before_any_call(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert_refused(cloud, capsys, *arguments)


# --- S3 --------------------------------------------------------------------------------------


def test_everything_can_be_in_s3(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = cloud.client("s3")
    s3.put_object(Bucket=BUCKET, Key="accept.txt", Body=f"{TOKYO}/mfa/* # there\n".encode())
    cloud.layer.calls.clear()
    run = ["--organization", "--csv", f"s3://{BUCKET}/csv/", "--state", f"s3://{BUCKET}/state.json"]
    run += ["--output", f"s3://{BUCKET}/runs/o.xls", "--json", f"s3://{BUCKET}/runs/o.json"]
    assert main([*run, "--accept", f"s3://{BUCKET}/accept.txt"]) == 3
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"s3://{BUCKET}/runs/o.xls"
    assert not [*Path().iterdir()]
    account = r"\d{12}"
    kinds = {re.sub(account, "ACCOUNT", key) for key in keys(s3)}
    books = {key for key in keys(s3) if re.fullmatch(rf"runs/security_check_{account}_.*", key)}
    assert len(books) == len(few.audited)
    csv = {f"csv/ACCOUNT-{check.name}.csv" for check in CHECKS}
    whole = {"accept.txt", "state.json", "runs/o.xls", "runs/o.json", *csv}
    assert {kind for kind in kinds if "security_check_" not in kind} == whole
    state = json.loads(body(s3, "state.json"))
    assert state["accounts"].keys() == {*few.audited}
    for key, kind in (
        ("runs/o.xls", "application/vnd.ms-excel"),
        ("runs/o.json", "application/json"),
        ("state.json", "application/json"),
        (f"csv/{TOKYO}-mfa.csv", "text/csv"),
    ):
        assert s3.head_object(Bucket=BUCKET, Key=key)["ContentType"] == kind
    links = xlrd.open_workbook(file_contents=body(s3, "runs/o.xls"), formatting_info=True)
    links = links.sheet_by_name("Accounts").hyperlink_map
    beside = {link.url_or_path for link in links.values() if link.url_or_path}
    names = {name if isinstance(name, str) else name.decode() for name in beside}
    assert names == {key.removeprefix("runs/") for key in books}
    (accounts,) = [json.loads(body(s3, "runs/o.json"))["accounts"]]
    assert Counter(
        (one["account"], row["id"])
        for one in accounts
        for check in one["checks"]
        for row in check["rows"]
        if row["status"] == "ACCEPTED"
    ) == {(TOKYO, "mfa/deploy"): 1}


def test_files_are_read_and_written_by_who_started_the_run(cloud: Cloud, few: Organization) -> None:
    run = ["--organization", "--state", f"s3://{BUCKET}/state.json", "--check", "mfa"]
    main([*run, "--output", f"s3://{BUCKET}/o.xls"])
    calls = [call for call in cloud.layer.calls if call.operation in ("PutObject", "GetObject")]
    assert {call.account for call in calls} == {DEFAULT_ACCOUNT_ID}
    assert {call.account for call in cloud.layer.calls} == {*few.audited}


def test_decisions_of_each_account_are_read_by_one_who_asks_once(
    cloud: Cloud, few: Organization
) -> None:
    for number in few.audited:
        cloud.client("s3").put_object(Bucket=BUCKET, Key=f"{number}.txt", Body=b"mfa/* # known\n")
    cloud.layer.calls.clear()
    run = ["--organization", "--check", "mfa", "--accept", f"s3://{BUCKET}/{{account}}.txt"]
    assert main(run) == 3  # for the account that cannot be entered
    assert cloud.layer.count()["sts:GetCallerIdentity"] == 2  # who reads files, and who audits
    assert cloud.layer.count()["s3:GetObject"] == len(few.audited)


def test_a_profile_that_starts_the_run_writes_too(
    cloud: Cloud, few: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cloud.credentials(TOKYO)
    lines = [f"{name.lower()} = {value}" for name, value in made.items()]
    Path("config").write_text("\n".join(["[profile tokyo]", "region = eu-west-1", *lines]))
    for name in made:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "config")
    place = {"LocationConstraint": "eu-west-1"}
    theirs = cloud.client("s3", "eu-west-1", TOKYO)
    theirs.create_bucket(Bucket="theirs", CreateBucketConfiguration=place)
    cloud.layer.calls.clear()
    assert main(["--profile", "tokyo", "--check", "mfa", "--output", "s3://theirs/x.xls"]) == 1
    assert {call.account for call in cloud.layer.calls} == {TOKYO}


def test_without_a_name_in_s3_nothing_is_put(cloud: Cloud, bucket: Any) -> None:
    main(["--json", "x.json", "--state", "state.json", "--csv", "."])
    assert not {"s3:PutObject", "s3:GetObject"} & {*cloud.layer.count()}
    assert cloud.layer.count()["sts:GetCallerIdentity"] == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("s3://nowhere-at-all/x.xls", "NoSuchBucket: s3 PutObject"),
        ("s3://theirs/x.xls", "AccessDenied: s3 PutObject"),
    ],
)
def test_what_cannot_be_written_is_one_line_before_the_audit(
    cloud: Cloud, bucket: Any, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    cloud.client("s3", account=TOKYO).create_bucket(Bucket="theirs")
    cloud.layer.calls.clear()
    for option in ("--output", "--json", "--state"):
        assert main([option, name]) == 2
        told = f"security_check.py: cannot write {name}: {words}"
        assert capsys.readouterr().err.splitlines() == [told]
    assert set(cloud.layer.count()) == {"sts:GetCallerIdentity", "s3:PutObject"}
    assert not [*Path().iterdir()]


def test_to_find_out_nothing_is_changed(cloud: Cloud, bucket: Any) -> None:
    bucket.put_object(Bucket=BUCKET, Key="old.xls", Body=b"last month's")
    cloud.layer.faults = [Fault("AccessDenied", "sts", after=1)]  # the second: of the audit
    assert main(["--output", f"s3://{BUCKET}/old.xls", "--json", f"s3://{BUCKET}/new.json"]) == 2
    assert keys(bucket) == {"old.xls"}
    assert body(bucket, "old.xls") == b"last month's"


def test_a_bucket_in_another_region_is_found(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"LocationConstraint": "eu-west-1"}
    cloud.client("s3", "eu-west-1").create_bucket(Bucket="far", CreateBucketConfiguration=place)
    app, error = cloud.layer.app, b"<Error><Code>PermanentRedirect</Code></Error>"

    def redirecting(environ: dict[str, Any], start: Any) -> Any:
        signed = environ.get("HTTP_AUTHORIZATION", "")
        if not environ["PATH_INFO"].startswith("/far") or "/eu-west-1/s3/" in signed:
            return app(environ, start)
        text = b"" if environ["REQUEST_METHOD"] == "HEAD" else error
        length = ("Content-Length", str(len(text)))
        start("301 Moved", [("x-amz-bucket-region", "eu-west-1"), length])
        return [text]

    monkeypatch.setattr(cloud.layer, "app", redirecting)
    cloud.layer.calls.clear()
    assert main(["--check", "mfa", "--output", "s3://far/x.xls"]) == 1
    puts = [call.region for call in cloud.layer.calls if call.operation == "PutObject"]
    assert puts == ["us-east-1", "eu-west-1", "eu-west-1"]


def test_a_store_that_knows_no_conditions_is_refused_and_loses_nothing(
    cloud: Cloud, bucket: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, name = cloud.layer.app, f"s3://{BUCKET}/old.xls"

    def careless(environ: dict[str, Any], start: Any) -> Any:
        environ.pop("HTTP_IF_MATCH", None)
        return app(environ, start)

    monkeypatch.setattr(cloud.layer, "app", careless)
    bucket.put_object(Bucket=BUCKET, Key="old.xls", Body=b"last month's")
    assert main(["--output", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"security_check.py: cannot write {name}: what answered knows no")
    assert body(bucket, "old.xls") == b"last month's"
    monkeypatch.setattr(cloud.layer, "app", app)  # what was left there does not matter
    assert keys(bucket) == {"old.xls", ".security_check-old.xls"}
    assert main(["--output", name, "--check", "ec2-classic"]) == 0


def test_decisions_that_are_not_there_are_one_line(
    cloud: Cloud, bucket: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--accept", f"s3://{BUCKET}/x.txt", "--output", "x.xls"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"security_check.py: cannot read s3://{BUCKET}/x.txt: no such object"


def test_a_report_that_cannot_be_put_is_kept_here(
    cloud: Cloud,
    bucket: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cloud.layer.faults = [Fault("AccessDenied", "s3", "PutObject", after=1, status=403)]
    assert main(["--output", f"s3://{BUCKET}/reports/x.xls"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    why, _, where = line.partition("; the results are in ")
    assert why.endswith(f"cannot write s3://{BUCKET}/reports/x.xls: AccessDenied: s3 PutObject")
    assert xlrd.open_workbook(where).sheet_names()[0] == "Summary"
    assert Path(where).name == "x.xls"


# --- a state in S3 that several write -----------------------------------------------------------


def test_concurrent_writers_of_one_state_lose_nothing(cloud: Cloud, bucket: Any) -> None:
    writer = security_check.Run(security_check.arguments([])).writer
    file = S3Object(writer, BUCKET, "state.json")
    entry = {"a/b": {"first_seen": "2030-01-01", "result": "Bad"}}
    with ThreadPoolExecutor(8) as pool:  # S3Object has no lock: threads are like processes
        list(pool.map(lambda n: write_state(file, f"account-{n}", entry, []), range(24)))
    assert read_state(file).accounts == {f"account-{n}": entry for n in range(24)}
    puts = cloud.layer.count()["s3:PutObject"]
    assert puts > 24, "nobody was overtaken, so nothing was proven"


@pytest.mark.parametrize(
    ("code", "status"), [("PreconditionFailed", 412), ("ConditionalRequestConflict", 409)]
)
def test_who_is_overtaken_reads_again(cloud: Cloud, bucket: Any, code: str, status: int) -> None:
    file = S3Object(security_check.Run(security_check.arguments([])).writer, BUCKET, "state.json")
    cloud.layer.faults = [Fault(code, "s3", "PutObject", status=status, times=2)]
    write_state(file, "1", {}, [])
    assert [*read_state(file).accounts] == ["1"]
    assert cloud.layer.count()["s3:GetObject"] == 4


def test_who_is_always_overtaken_gives_up_and_says_so(
    cloud: Cloud, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(security_check, "UPDATES", 3)
    file = S3Object(security_check.Run(security_check.arguments([])).writer, BUCKET, "state.json")
    cloud.layer.faults = [Fault("PreconditionFailed", "s3", "PutObject", status=412)]
    with pytest.raises(CannotRun, match=r"state\.json: PreconditionFailed.*results are in") as why:
        write_state(file, "1", {}, [])
    kept = json.loads(Path(str(why.value).rpartition(" in ")[2]).read_bytes())
    assert kept["accounts"] == {"1": {}}


# --- merging -----------------------------------------------------------------------------------


def audit_each(*names: str, checks: Sequence[str] = IAM_ALONE) -> None:
    """Every account by a run of its own, as any engine would do it."""
    for number in names:
        files = ["--json", "runs/{account}.json", "--output", "runs/{account}.xls"]
        main(["--account", number, *files, *checks])


def test_an_overview_of_what_others_audited_is_that_of_one_run(
    cloud: Cloud, few: Organization
) -> None:
    audit_each(*few.names, checks=())
    main(["--organization", "--output", "runs/local.xls"])
    asked = len(cloud.layer.calls)
    assert main(["--organization", "--merge", "runs", "--output", "runs/merged.xls"]) == 3
    told = Counter(call.name for call in cloud.layer.calls[asked:])
    assert told.keys() == {"sts:GetCallerIdentity", "organizations:ListAccounts"}
    local, merged = (cells(Path(f"runs/{name}.xls").read_bytes()) for name in ("local", "merged"))
    assert merged == local


def test_without_a_list_nobody_is_asked_anything(
    cloud: Cloud, few: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_each(SOEHNE, TOKYO)
    cloud.layer.calls.clear()
    for name in cloud.environment:
        monkeypatch.delenv(name)
    files = [f"runs/{SOEHNE}.json", f"runs/{TOKYO}.json"]
    assert main(["--merge", *files, "--output", "o.xls", "--json", "o.json"]) == 1
    assert cloud.layer.calls == []
    documents = json.loads(Path("o.json").read_text())["accounts"]
    each = [json.loads(Path(name).read_text())["accounts"][0] for name in files]
    assert sorted(documents, key=lambda one: str(one["account"])) == each
    shown = cells(Path("o.xls").read_bytes())["Accounts"]
    books = {row[0]: row[-1] for row in shown[3:]}  # in another folder, so not as links
    wanted = {number: str(Path(f"runs/{number}.xls").resolve()) for number in (SOEHNE, TOKYO)}
    assert books == wanted
    assert "OK" in {
        row["status"] for one in each for check in one["checks"] for row in check["rows"]
    }
    assert "OK" not in {cell for row in cells(Path("o.xls").read_bytes())["MFA"] for cell in row}
    book = xlrd.open_workbook("o.xls", formatting_info=True).sheet_by_name("Accounts")
    assert not [link for link in book.hyperlink_map.values() if link.url_or_path]


def test_an_account_of_which_there_is_no_report_is_a_gap(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    audit_each(SOEHNE)
    capsys.readouterr()
    given = ["--merge", "runs", "--account", SOEHNE, "--account", TOKYO]
    assert main([*given, "--output", "o.xls"]) == 3
    assert "AWS accounts: 1 audited, 1 NOT CHECKED" in capsys.readouterr().out
    (row,) = (row for row in cells(Path("o.xls").read_bytes())["Accounts"] if row[0] == TOKYO)
    assert "NoReport: of this run" in row


def test_what_the_state_remembers_of_an_account_without_a_report_is_shown(
    cloud: Cloud, few: Organization
) -> None:
    state = ["--state", "state/{account}.json"]
    main(["--organization", *state, "--output", "o.xls"])
    old = Path(f"state/{TOKYO}.json")
    old.write_text(re.sub(r"\d{4}-\d\d-\d\d", "2026-01-01", before := old.read_text()))
    main(["--account", SOEHNE, *state, "--json", "runs/{account}.json", "--output", "x.xls"])
    main(["--merge", "runs", *state, "--account", SOEHNE, "--account", TOKYO, "--output", "m.xls"])
    summary = cells(Path("m.xls").read_bytes())["Summary"]
    _, today = (row for row in summary if "█" in row[8])
    known = json.loads(before)["history"][TOKYO][-1]["found"]
    theirs = json.loads(Path(f"state/{SOEHNE}.json").read_text())["history"][SOEHNE][-1]["found"]
    assert [float(one or 0) for one in today[1:5]] == [known[s] + theirs[s] for s in SEVERITIES]
    assert float(today[7]) == 1
    assert "2026-01-01" in old.read_text()


def test_a_run_began_with_its_first_account_and_ended_with_its_last(
    cloud: Cloud, few: Organization
) -> None:
    audit_each(SOEHNE, TOKYO)
    for number, minute in ((SOEHNE, 45), (TOKYO, 15)):
        began = {"started": f"2026-01-01T06:{minute}:00+00:00", "duration": 30.0}
        edited(Path(f"runs/{number}.json"), lambda d, began=began: d["accounts"][0].update(began))
    main(["--merge", "runs", "--output", "o.xls"])
    summary = xlrd.open_workbook("o.xls").sheet_by_name("Summary")
    told = dict(summary.row_values(n, 0, 2) for n in range(summary.nrows))
    assert (told["Started"], told["Duration"]) == ("2026-01-01 06:15 UTC", "1830 s")


def edited(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def older(document: Any) -> None:
    document["accounts"][0]["started"] = (
        datetime.now(timezone.utc).replace(microsecond=0) - timedelta(days=30)
    ).isoformat()


def fewer(document: Any) -> None:
    del document["accounts"][0]["checks"][0]


def none(document: Any) -> None:
    document["accounts"][0]["checks"] = []


def limited(document: Any) -> None:
    document["accounts"][0]["checks"][0]["whole"] = False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema=3), "is of version 3, this script knows 4"),
        (lambda d: d["accounts"][0].pop("home"), "is damaged, or no report of this script"),
        (lambda d: d["accounts"][0].update(seconds=1), "is damaged, or no report of this script"),
        (older, "was audited on"),
        (fewer, "was asked about fewer checks or regions"),
        (none, "was asked about fewer checks or regions"),
        (limited, "was asked about fewer checks or regions"),
    ],
    ids=[
        "version",
        "damaged",
        "unknown",
        "of last month",
        "fewer checks",
        "no checks",
        "fewer regions",
    ],
)
def test_what_cannot_be_merged_is_one_line_and_the_rest_is_merged(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str], change: Any, words: str
) -> None:
    audit_each(SOEHNE, TOKYO, DEFAULT_ACCOUNT_ID)
    edited(Path(f"runs/{TOKYO}.json"), change)
    capsys.readouterr()
    named = [f"--account={one}" for one in (SOEHNE, TOKYO, DEFAULT_ACCOUNT_ID)]
    assert main(["--merge", "runs", *named, "--output", "o.xls"]) == 3
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert words in line
    assert TOKYO in line
    shown = cells(Path("o.xls").read_bytes())["Accounts"]
    told = [cell for row in shown if f"{TOKYO}" in row[0] + row[1] for cell in row]
    assert [cell for cell in told if cell.startswith("NotMerged: ") and words in cell]
    assert re.search(r"2 audited, [12] NOT CHECKED", said.out)


@pytest.mark.posix  # for how paths are written, as below
def test_an_account_that_is_there_twice(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    audit_each(SOEHNE, TOKYO)
    text = Path(f"runs/{TOKYO}.json").read_text()
    Path("runs/again.json").write_text(text)
    edited(Path("runs/again.json"), lambda d: d["accounts"][0].update(
        started="2026-01-01T00:00:00+00:00"))  # fmt: skip
    capsys.readouterr()
    assert main(["--merge", "runs", "--output", "o.xls"]) == 3
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert f"{TOKYO} is in runs/{TOKYO}.json and in runs/again.json: the later one counts" in line
    assert "2 audited, 1 NOT CHECKED" in said.out


@pytest.mark.posix
@pytest.mark.parametrize(
    "content", ["", "<html>", "[" * 100_000, "[1]", "\x00\udcff"], ids=lambda text: text[:6]
)
def test_a_file_that_is_no_report_is_a_gap(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    audit_each(TOKYO)
    Path("runs/odd.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    capsys.readouterr()
    assert main(["--merge", "runs", "--output", "o.xls"]) == 3
    said = capsys.readouterr()
    words = "runs/odd.json is damaged, or no report of this script"
    assert said.err.splitlines() == [f"security_check.py: {words}"]
    assert "1 audited, 1 NOT CHECKED" in said.out
    (row,) = (row for row in cells(Path("o.xls").read_bytes())["Accounts"] if row[1] == "odd.json")
    assert f"NotMerged: {words}" in row


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
    cloud: Cloud, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = Report("", NOW.replace(microsecond=0), arn="arn:aws:sts::1:x")
    for n in range(7):
        document = whole_json([as_json(replace(blank, number=f"{n:012}", state="SUSPENDED"))])
        bucket.put_object(Bucket=BUCKET, Key=f"{n}.json", Body=document)
    fetch = security_check.Account.fetch

    def three_at_once(*args: Any, **params: Any) -> Any:
        return fetch(*args, **{**params, "page_size": 3})

    monkeypatch.setattr(security_check.Account, "fetch", three_at_once)
    assert main(["--merge", f"s3://{BUCKET}", "--output", "o.xls"]) == 0
    assert cloud.layer.count()["s3:ListObjectsV2"] == 3
    shown = cells(Path("o.xls").read_bytes())["Accounts"]
    assert {row[0] for row in shown[3:]} == {f"{n:012}" for n in range(7)}


@pytest.mark.posix
def test_the_commands_of_the_readme_make_the_overview_of_one_run(
    cloud: Cloud, few: Organization, tmp_path: Path
) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "security_check.py").symlink_to(security_check.__file__)
    (commands,) = (text for text in SHELL if "xargs" in text)
    needed = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        ["/bin/sh", "-c", commands],
        env={**needed, **cloud.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 3
    assert f"AccessDenied: sts AssumeRole arn:aws:iam::{CLOSED}" in ran.stderr
    (made,) = Path("runs").iterdir()
    main(["--organization", "--output", f"{made}/local.xls"])
    told, local = (cells((made / name).read_bytes()) for name in ("overview.xls", "local.xls"))
    assert told == local


def test_the_policy_for_s3_allows_what_a_run_asks_of_it_and_nothing_else(
    cloud: Cloud, few: Organization
) -> None:
    (policy,) = (json.loads(text) for text in POLICIES if "s3:PutObject" in text)
    allowed = set()
    for statement in policy["Statement"]:
        actions = statement["Action"]
        of = statement["Resource"].removeprefix("arn:aws:s3:::example-reports")
        allowed |= {(one, of) for one in ([actions] if isinstance(actions, str) else actions)}
    top = f"s3://{BUCKET}"
    cloud.client("s3").put_object(Bucket=BUCKET, Key="accept.txt", Body=b"# nothing\n")
    cloud.layer.calls.clear()
    run = ["--account", TOKYO, "--state", f"{top}/state.json", "--accept", f"{top}/accept.txt"]
    main([*run, "--json", f"{top}/r/x.json", "--output", f"{top}/x.xls", "--csv", f"{top}/csv"])
    main(["--merge", f"{top}/r/", "--output", f"{top}/o.xls"])
    known = {"ListObjectsV2": ("s3:ListBucket", "")}
    asked = {
        known.get(call.operation, (f"s3:{call.operation}", "/*"))
        for call in cloud.layer.calls
        if call.service == "s3" and call.text.startswith(f"/{BUCKET}")
    }
    assert asked == allowed


# --- the list of accounts ------------------------------------------------------------------------


def test_the_list_holds_who_can_be_audited(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.set_state(SOEHNE, "SUSPENDED")
    assert main(["--organization", "--list", "-"]) == 0
    assert capsys.readouterr().out.split() == [DEFAULT_ACCOUNT_ID, TOKYO, CLOSED]
    assert main(["--organization", "--list", f"s3://{BUCKET}/accounts.csv"]) == 0
    told = body(cloud.client("s3"), "accounts.csv").decode().split()
    assert told == [DEFAULT_ACCOUNT_ID, TOKYO, CLOSED]
    assert not [call for call in cloud.layer.calls if call.operation == "AssumeRole"]
    cloud.layer.faults = [Fault("AccessDeniedException", "organizations")]
    assert main(["--organization", "--list", "accounts.csv"]) == 2
    assert not Path("accounts.csv").exists()


# --- Lambda --------------------------------------------------------------------------------------


def handled(*arguments: str) -> dict[str, Any]:
    answer = lambda_handler({"arguments": [*arguments]}, None)
    assert json.loads(json.dumps(answer)) == answer
    return answer


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that a function may write to; the current one cannot be written."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_function_tells_what_came_out_and_leaves_nothing(
    cloud: Cloud, few: Organization, temporary: Path
) -> None:
    names = [f"s3://{BUCKET}/{{account}}.{kind}" for kind in ("json", "xls")]
    before, here = {*Path().rglob("*")}, Path.cwd()
    answer = handled("--account", TOKYO, "--json", names[0], "--output", names[1])
    assert answer == {
        "exit_code": 1,
        "headline": f"AWS account {TOKYO}: 6 findings, everything was checked",
        "calm": False,
        "files": [f"s3://{BUCKET}/{TOKYO}.xls", f"s3://{BUCKET}/{TOKYO}.json"],
    }
    lost = handled("--account", TOKYO, "--csv", ".", "--state", "state.json")
    assert lost["files"] == []
    assert ({*Path().rglob("*")}, Path.cwd()) == (before, here)
    assert not [*temporary.iterdir()]


def test_all_is_calm_when_there_is_nothing_new(cloud: Cloud, few: Organization) -> None:
    run = ["--account", TOKYO, "--state", f"s3://{BUCKET}/state.json"]
    assert [handled(*run)["calm"] for _ in range(2)] == [False, True]
    cloud.client("iam", account=TOKYO).create_user(UserName="new")
    assert handled(*run)["calm"] is False


def test_an_account_that_cannot_be_entered_has_a_report_all_the_same(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = handled("--account", CLOSED, "--json", f"s3://{BUCKET}/{{account}}.json")
    assert (answer["exit_code"], answer["calm"]) == (3, False)
    assert answer["files"] == [f"s3://{BUCKET}/{CLOSED}.json"]
    (account,) = json.loads(body(cloud.client("s3"), f"{CLOSED}.json"))["accounts"]
    assert account["error"]["code"] == "AccessDenied"
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot enter the account: AccessDenied: sts AssumeRole" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frobnicate"], "bad arguments"),
        (["--help"], "bad arguments"),
        (["--json", "s3://nowhere-at-all/x.json"], "NoSuchBucket"),
        (["--account", CLOSED], "cannot enter the account: AccessDenied"),
        (["--region", "mars-1"], "no such region"),
        (["--merge", f"s3://{BUCKET}/none/"], "there is no report to merge"),
    ],
    ids=" ".join,
)
def test_what_no_report_can_be_written_for_is_raised(
    cloud: Cloud, few: Organization, arguments: list[str], words: str
) -> None:
    here = Path.cwd()
    with pytest.raises(CannotRun, match=words):
        handled(*arguments)
    assert Path.cwd() == here


def test_a_warm_start_keeps_nothing_of_the_last_account(
    cloud: Cloud, few: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that has served others an account is what it is in a fresh one."""
    checks = [*CHECKS]
    run = ["--json", f"s3://{BUCKET}/{{account}}.json", "--output", f"s3://{BUCKET}/x.xls"]
    text = (
        "import json, sys, security_check as s; s.lambda_handler({'arguments': sys.argv[1:]}, None)"
    )
    path = os.pathsep.join(sys.path)
    fresh = [sys.executable, "-c", text, "--account", TOKYO, *run]
    subprocess.run(fresh, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
    s3 = cloud.client("s3")
    first = json.loads(body(s3, f"{TOKYO}.json"))
    handled("--account", SOEHNE, *run, "--debug", "--state", f"s3://{BUCKET}/state.json")
    capsys.readouterr()
    cloud.layer.calls.clear()
    handled("--account", TOKYO, *run)
    assert {call.account for call in cloud.layer.calls} == {DEFAULT_ACCOUNT_ID, TOKYO}
    assert capsys.readouterr().err == ""
    assert logging.getLogger("botocore").level == logging.NOTSET  # and --debug is over
    second = json.loads(body(s3, f"{TOKYO}.json"))
    for document in (first, second):
        for name in ("started", "duration"):
            del document["accounts"][0][name]
    assert second == first
    assert checks == CHECKS
