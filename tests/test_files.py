"""Where reports go: names that are filled in, files on this machine, and files in S3."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import making
import pytest
import readme
from cloud import DEFAULT_ACCOUNT_ID, Cloud, Fault
from conftest import BUCKET, assert_refused, objects
from example import SOEHNE, TOKYO, Organization
from reading import CHECKS_BY_NAME, read_accounts, read_cells, read_sheet, rows_by_id, sheet_names

import security_check
from security_check import (
    Account,
    AccountState,
    CannotRun,
    S3Object,
    StateChange,
    account_state,
    apply_change,
    main,
    read_state_file,
    write_state_file,
)

# --- names that are filled in ---------------------------------------------------------------


def test_names_are_filled_in_here_too(
    cloud: Cloud, org_with_bucket: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("decisions").mkdir()
    for number in org_with_bucket.audited:
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
        *(f"{number}.xls" for number in org_with_bucket.audited),
        *(f"{number}.json" for number in org_with_bucket.names),
    }
    for number in org_with_bucket.audited:
        assert {path.name for path in Path("csv", number).iterdir()} == {
            f"{number}-{name}.csv" for name in (*CHECKS_BY_NAME, "controls", "resolved")
        }
        (state,) = Path("state").glob(f"{number}-????.json")
        assert [*json.loads(state.read_text())["accounts"]] == [number]
        (account,) = json.loads((day / f"{number}.json").read_text())["accounts"]
        rows = rows_by_id(account)
        accepted = [id for id, row in rows.items() if row["status"] == "ACCEPTED"]
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
        *(["--merge", "x", f"--{name}"] for name in ("region=x", "role=x", "accept=x", "list=-")),
        ["--merge", "x", "--check", "mfa"],
        ["--merge", "x", "--exclude-region", "x"],
        ["--merge", "x", "--max-key-age", "60"],
    ],
    ids=" ".join,
)
def test_bad_names_are_one_line_before_any_call(
    cloud: Cloud, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert_refused(cloud, capsys, *arguments)


# --- S3 -------------------------------------------------------------------------------------


def test_everything_can_be_in_s3(
    cloud: Cloud, org_with_bucket: Organization, capsys: pytest.CaptureFixture[str]
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
    written = objects(s3)
    kinds = {re.sub(account, "ACCOUNT", key) for key in written}
    books = {key for key in written if re.fullmatch(rf"runs/security_check_{account}_.*", key)}
    assert len(books) == len(org_with_bucket.audited)
    sheets = (*CHECKS_BY_NAME, "accounts", "controls", "resolved")
    csv = {f"csv/overview-{name}.csv" for name in sheets}
    whole = {"accept.txt", "state.json", "runs/o.xls", "runs/o.json", *csv}
    assert {kind for kind in kinds if "security_check_" not in kind} == whole
    state = json.loads(written["state.json"])
    assert state["accounts"].keys() == {*org_with_bucket.audited}
    for key, kind in (
        ("runs/o.xls", "application/vnd.ms-excel"),
        ("runs/o.json", "application/json"),
        ("state.json", "application/json"),
        ("csv/overview-mfa.csv", "text/csv"),
    ):
        assert s3.head_object(Bucket=BUCKET, Key=key)["ContentType"] == kind
    lines = read_cells(written["runs/o.xls"], "Accounts")
    beside = {cell.link for line in lines for cell in line.values() if cell.link}
    assert beside == {key.removeprefix("runs/") for key in books}
    assert Counter(
        (one["account"], id)
        for one in json.loads(written["runs/o.json"])["accounts"]
        for id, row in rows_by_id(one).items()
        if row["status"] == "ACCEPTED"
    ) == {(TOKYO, "mfa/deploy"): 1}


def test_files_are_read_and_written_by_who_started_the_run(
    cloud: Cloud, org_with_bucket: Organization
) -> None:
    run = ["--organization", "--state", f"s3://{BUCKET}/state.json", "--check", "mfa"]
    main([*run, "--output", f"s3://{BUCKET}/o.xls"])
    calls = [call for call in cloud.layer.calls if call.operation in ("PutObject", "GetObject")]
    assert {call.account for call in calls} == {DEFAULT_ACCOUNT_ID}
    assert {call.account for call in cloud.layer.calls} == {*org_with_bucket.audited}


def test_accept_files_of_each_account_are_read_with_one_session(
    cloud: Cloud, org_with_bucket: Organization
) -> None:
    for number in org_with_bucket.audited:
        cloud.client("s3").put_object(Bucket=BUCKET, Key=f"{number}.txt", Body=b"mfa/* # known\n")
    cloud.layer.calls.clear()
    run = ["--organization", "--check", "mfa", "--accept", f"s3://{BUCKET}/{{account}}.txt"]
    assert main(run) == 3  # for the account that cannot be opened
    assert cloud.layer.count()["sts:GetCallerIdentity"] == 2  # who reads files, and who audits
    # that of the account that cannot be opened too, as its error may be accepted there
    assert cloud.layer.count()["s3:GetObject"] == len(org_with_bucket.names)


def test_a_profile_that_starts_the_run_writes_too(
    cloud: Cloud, org_with_bucket: Organization, monkeypatch: pytest.MonkeyPatch
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
        ("s3://nowhere-at-all/x", "NoSuchBucket: s3 PutObject"),
        ("s3://theirs/x", "AccessDenied: s3 PutObject"),
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
    assert objects(bucket) == {"old.xls": b"last month's"}


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
    assert line.startswith(f"security_check.py: cannot write {name}: this store ignores conditions")
    assert objects(bucket)["old.xls"] == b"last month's"
    assert objects(bucket).keys() == {"old.xls"}
    monkeypatch.setattr(cloud.layer, "app", app)
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
    said = capsys.readouterr()
    assert said.out.startswith(f"AWS account {DEFAULT_ACCOUNT_ID}, ")
    (line,) = said.err.splitlines()
    why, _, where = line.partition("; the results are in ")
    assert why.endswith(f"cannot write s3://{BUCKET}/reports/x.xls: AccessDenied: s3 PutObject")
    assert sheet_names(where)[0] == "Summary"
    assert Path(where).name == "x.xls"


def test_what_cannot_be_put_is_kept_whatever_the_name_of_its_object(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file: Any = S3Object(None, BUCKET, f"{'報' * 300}.json")  # type: ignore[arg-type]
    with pytest.raises(CannotRun, match="the results are in ") as why:
        security_check.save_copy_and_fail(b"x", file, OSError())
    copy = Path(str(why.value).rpartition(" in ")[2])
    assert (copy.read_bytes(), copy.suffix) == (b"x", ".json")


def test_a_file_of_one_account_that_cannot_be_written_costs_that_account_only(
    cloud: Cloud, org_with_bucket: Organization, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lost = f"{TOKYO}-mfa.csv"
    cloud.layer.faults = [Fault("AccessDenied", "s3", "PutObject", resource=lost, status=403)]
    run = ["--account", SOEHNE, "--account", TOKYO, "--check", "mfa", "--state", "state.json"]
    run += ["--csv", f"s3://{BUCKET}/{{account}}", "--json", "o.json", "--output", "o.xls"]
    assert main(run) == 3
    found = read_accounts("o.json")
    (why,) = found[TOKYO]["file_errors"]
    file = f"s3://{BUCKET}/{TOKYO}/{lost}"
    words = f"cannot write {file}: AccessDenied: s3 PutObject; the results are in "
    assert why.startswith(words)
    assert Path(why.removeprefix(words)).read_text("utf-8-sig").count("deploy") > 0
    assert found[SOEHNE]["file_errors"] == []
    results = {line["Account"]: line["Result"] for line in read_sheet("o.xls", "Accounts")}
    assert results[TOKYO] == why
    # what was not told to anybody is not remembered: the next run tells it
    assert json.loads(Path("state.json").read_text())["accounts"].keys() == {SOEHNE}


def test_the_json_of_an_account_says_what_could_not_be_written(
    cloud: Cloud, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cloud.layer.faults = [Fault("AccessDenied", "s3", "PutObject", after=1, status=403)]
    names = ["--output", f"s3://{BUCKET}/x.xls", "--json", "{account}.json"]
    assert main([*names, "--check", "ec2-classic"]) == 2
    (why,) = read_accounts(f"{DEFAULT_ACCOUNT_ID}.json")[DEFAULT_ACCOUNT_ID]["file_errors"]
    assert why.startswith(f"cannot write s3://{BUCKET}/x.xls: AccessDenied: s3 PutObject; the res")


def test_the_policy_for_s3_allows_what_a_run_asks_of_it_and_nothing_else(
    cloud: Cloud, org_with_bucket: Organization
) -> None:
    allowed = set()
    for statement in json.loads(readme.block("json", "s3:PutObject"))["Statement"]:
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


# --- a state in S3 that several write -------------------------------------------------------


def files_account() -> Account:
    """The account that reads and writes files in S3."""
    return security_check.Run(security_check.parse_arguments([])).files_account


def one_finding() -> StateChange:
    """What an audit changes in the state that has found one thing."""
    return StateChange(
        today="2030-01-01",
        checks=["mfa"],
        seen={"mfa/alice": making.known("2030-01-01", "Has no MFA device", severity="Medium")},
        gone=set(),
        resolved={},
        not_checked=0,
        coverage={},
        max_key_age=90,
    )


def state_in(file: S3Object) -> dict[str, AccountState]:
    """What the file remembers of each account."""
    accounts = read_state_file(file)
    return {account: account_state(accounts, account, file) for account in accounts}


def test_concurrent_writers_of_one_state_lose_nothing(
    cloud: Cloud, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight read the same state before any of them writes, so that seven are overtaken."""
    file, change = S3Object(files_account(), BUCKET, "state.json"), one_finding()
    update, first, all_have_read = S3Object.update, iter(range(8)), threading.Barrier(8)

    def update_together(file: S3Object, change: Any) -> None:
        def changed(before: bytes | None) -> Any:
            if next(first, None) is not None:
                all_have_read.wait(timeout=300)
            return change(before)

        update(file, changed)

    monkeypatch.setattr(S3Object, "update", update_together)
    monkeypatch.setattr(security_check, "CONFLICT_PAUSE", 10)
    with ThreadPoolExecutor(8) as pool:  # S3Object has no lock: threads are like processes
        list(pool.map(lambda n: write_state_file(file, {f"account-{n}": change}), range(24)))
    after = apply_change(AccountState(), change)
    assert [*after.findings] == ["mfa/alice"]
    assert state_in(file) == {f"account-{n}": after for n in range(24)}
    assert cloud.layer.count()["s3:PutObject"] >= 24 + 7


def test_two_runs_over_one_account_both_leave_what_they_saw(cloud: Cloud, bucket: Any) -> None:
    """Each run read the state before the other wrote it."""
    file, change = S3Object(files_account(), BUCKET, "state.json"), one_finding()
    other = {"access-keys/bob/AKIA1": making.known("2030-01-01", "Key is old", severity="Medium")}
    write_state_file(file, {"1": change})
    write_state_file(file, {"1": change._replace(checks=["access-keys"], seen=other)})
    state = state_in(file)["1"]
    assert state.findings.keys() == {"mfa/alice", *other}
    assert state.since.keys() == {"mfa", "access-keys"}
    assert state.history[-1].open["Medium"] == 2


@pytest.mark.parametrize(
    ("code", "status"), [("PreconditionFailed", 412), ("ConditionalRequestConflict", 409)]
)
def test_a_writer_that_is_overtaken_reads_again(
    cloud: Cloud, bucket: Any, code: str, status: int
) -> None:
    file = S3Object(files_account(), BUCKET, "state.json")
    cloud.layer.faults = [Fault(code, "s3", "PutObject", status=status, times=2)]
    write_state_file(file, {"1": one_finding()})
    assert [*read_state_file(file)] == ["1"]
    assert cloud.layer.count()["s3:GetObject"] == 4


def test_a_writer_that_is_always_overtaken_gives_up_and_says_so(
    cloud: Cloud, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(security_check, "MAX_WRITE_TRIES", 3)
    file = S3Object(files_account(), BUCKET, "state.json")
    cloud.layer.faults = [Fault("PreconditionFailed", "s3", "PutObject", status=412)]
    with pytest.raises(CannotRun, match=r"state\.json: PreconditionFailed.*results are in") as why:
        write_state_file(file, {"1": one_finding()})
    assert cloud.layer.count()["s3:PutObject"] == 3
    kept = json.loads(Path(str(why.value).rpartition(" in ")[2]).read_bytes())
    assert [*kept["accounts"]["1"]["findings"]] == ["mfa/alice"]
