"""Names of files: what is wrong with them is found before the first call; what is there stays."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xlrd
from cloud import DEFAULT_ACCOUNT_ID, Cloud, Fault

import security_check
from security_check import CannotRun, LocalFile, Run, main, parse_arguments

BUCKET = "reports"
QUICK = ("--check", "ec2-classic")  # nothing to find in an empty account
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def paths() -> set[str]:
    """All that is in the folder."""
    return {str(path) for path in Path().rglob("*")}


def snapshot() -> dict[str, tuple[int, str]]:
    """All that is in the folder, with its mode and its content or target."""
    found = {}
    for path in Path().rglob("*"):
        mode = path.lstat().st_mode
        text = path.read_text("latin-1") if stat.S_ISREG(mode) else ""
        found[str(path)] = mode, str(path.readlink()) if stat.S_ISLNK(mode) else text
    return found


def code_of(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:  # argparse's own way
        return int(stop.code or 0)


def mode(name: str) -> int:
    return stat.S_IMODE(Path(name).stat().st_mode)


# --- what cannot start ----------------------------------------------------------------

LONG = "x" * 300
REFUSED = {
    **{
        f"{option} is empty": [option, ""]
        for option in (
            *("--output", "--json", "--csv", "--state", "--accept", "--merge", "--list"),
            *("--ocsf", "--exclude-region", "--external-id"),
            *("--profile", "--region", "--role", "--account", "--check", "--max-key-age"),
        )
    },
    "workbook for a newer Excel": ["--output", "report.xlsx"],
    "workbook for a newer Excel, in capitals": ["--output", "REPORT.XLSX"],
    "workbook for a newer Excel, in S3": ["--output", "s3://reports/x.xlsx"],
    "workbook called CSV": ["--output", "report.csv"],
    "workbook called JSON": ["--output", "{account}.json"],
    "workbook with the name of a format": ["--output", "json"],
    "JSON called a workbook": ["--json", "report.xls"],
    "state called a workbook": ["--state", "state.xls"],
    "list called JSON": ["--organization", "--list", "accounts.json"],
    "workbook on standard output": ["--output", "-"],
    "state on standard output": ["--state", "-"],
    "acceptances from standard input": ["--accept", "-"],
    "CSV on standard output": ["--csv", "-"],
    "reports from standard input": ["--merge", "-"],
    "new folder for a file": ["--output", "newdir/"],
    "new folder for a file, with a dot": ["--json", "newdir/."],
    "folder for a file": ["--output", "folder"],
    "folder for JSON": ["--json", "folder"],
    "this folder for a file": ["--state", "."],
    "folder above for a file": ["--json", ".."],
    "folder in S3 for a file": ["--output", "S3://reports/folder/"],
    "bucket for a file": ["--json", "S3://reports"],
    "half a name in S3": ["--json", "S3:reports/x.json"],
    "zero byte in a name": ["--json", "a\0b"],
    "name that is no text": ["--json", "\udcff.json"],
    "unknown placeholder": ["--output", "{acount}.xls"],
    "link to itself": ["--json", "loop.json"],
    "link to itself for the workbook": ["--output", "loop.xls"],
    "link to itself for the state": ["--state", "loop.json"],
    "link into a folder that is not there": ["--json", "dangling.json"],
    "name that is too long": ["--output", f"{LONG}.xls"],
    "name that is too long, in a new folder": ["--output", f"{{date}}/{LONG}.xls"],
    "folder with a name that is too long": ["--csv", LONG],
    "name that is too long with the account's number": ["--json", f"{'x' * 245}{{account}}"],
    "folder that is not there": ["--output", "nowhere/x.xls"],
    "file in the place of a folder": ["--json", "acc.txt/x.json"],
    "file in the place of the folder for CSV": ["--csv", "acc.txt"],
    "folder in the place of a CSV file": ["--csv", "tables", "--account", "111111111111"],
    "acceptances that are not there": ["--accept", "nowhere.txt"],
    "reports that are not there": ["--merge", "nowhere"],
    "reports that are not there, of an organization": ["--organization", "--merge", "nowhere"],
    "socket for a file": ["--json", "socket"],
    "pipe for the state": ["--state", "pipe"],
    "state whose lock is a folder": ["--state", "locked.json"],
    "accept file for JSON": ["--accept", "acc.txt", "--json", "acc.txt"],
    "accept file for JSON, by another way": ["--accept", "acc.txt", "--json", "folder/../acc.txt"],
    "accept file for JSON, by a link": ["--accept", "acc.txt", "--json", "link.txt"],
    "state for JSON": ["--state", "s.json", "--json", "./s.json"],
    "state for JSON, both new": ["--state", "new.json", "--json", "./new.json"],
    "state for JSON, filled in": ["--state", "{account}.json", "--json", "111111111111.json"],
    "state for JSON, of each account": ["--state", "{account}.json", "--json", "{account}.json"],
    "state for JSON, in S3": ["--state", "s3://reports/s.json", "--json", "S3://reports/s.json"],
    "OCSF for JSON": ["--ocsf", "x.json", "--json", "x.json"],
    "report for what is merged": ["--merge", "s.json", "--json", "s.json"],
    "no workbook, and its name": ["--no-workbook", "--output", "x.xls"],
    "role by its ARN": ["--account", "111111111111", "--role", "arn:aws:iam::111111111111:role/x"],
    "profile that is no text": ["--profile", "\udcff", "other"],
    "options in UTF-16": ["@utf16.txt"],
    "options that name themselves": ["@itself.txt"],
    "abbreviated option": ["--out", "x.xls"],
    "abbreviated option with a value": ["--organ"],
    **{
        f"list with {option}": ["--organization", "--list", "-", option, value]
        for option, value in {
            "--output": "x.xls",
            "--json": "x.json",
            "--csv": "x",
            "--state": "s.json",
            "--accept": "acc.txt",
            "--check": "mfa",
            "--role": "x",
            "--max-key-age": "1",
            "--ocsf": "x.json",
            "--fail-on": "High",
            "--external-id": "x1",
        }.items()
    },
    "wrong here, though the other is in S3": ["--json", "s3://b0b/x.json", "--output", "folder"],
    "not there, though the other is in S3": ["--state", "s3://b0b/x.json", "--merge", "nowhere"],
}


@pytest.fixture
def things(cloud: Cloud) -> Iterator[None]:
    """A folder with files that nobody may touch."""
    import socket

    Path("acc.txt").write_text("mfa/alice # leaves\n")
    Path("s.json").write_text('{"schema": 2, "accounts": {}}')
    Path("folder").mkdir()
    Path("itself.txt").write_text("--quiet\n@itself.txt\n")
    Path("utf16.txt").write_bytes("--quiet\n".encode("utf-16"))
    Path("tables/111111111111-mfa.csv").mkdir(parents=True)
    for name in ("loop.json", "loop.xls"):
        Path(name).symlink_to(name)
    Path("dangling.json").symlink_to("nowhere/x.json")
    Path("link.txt").symlink_to("acc.txt")
    os.mkfifo("pipe")
    Path(".locked.json.lock").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        yield


@pytest.mark.posix
@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_a_name_is_one_line_before_the_first_call(
    cloud: Cloud, things: None, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    before = snapshot()
    assert code_of(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("security_check.py: ")]
    assert len(lines) == 1
    assert cloud.layer.calls == []
    assert snapshot() == before


FINE = {
    "capitals": ["--output", "REPORT.XLS"],
    "name of mktemp": ["--output", "tmp.AbCdEfGh"],
    "no ending": ["--output", "report", "--json", "report.d", "--state", "state"],
    "placeholders": ["--output", "{account}/{date}-{time}.xls", "--json", "{account}.json"],
    "list for the template": ["--organization", "--list", "s3://b0b/accounts.csv"],
    "JSON as text": ["--json", "x.txt"],
    "no workbook": ["--no-workbook", "--json", "-"],
    "two names that meet in no account": ["--state", "{account}.json", "--json", "all.json"],
    "one pipe for two": ["--output", "pipe", "--json", "pipe"],
    "one of the longest names": ["--json", "x" * 240],
    "beyond ASCII": ["--output", "größe-監査.xls"],
    "role with a path": ["--role", "/audit/security-check"],
}


@pytest.mark.posix
@pytest.mark.parametrize("arguments", FINE.values(), ids=FINE)
def test_what_is_right_with_a_name(
    cloud: Cloud, things: None, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(security_check.S3Object, "ensure_writable", lambda file: None)
    before = snapshot()
    security_check.check_before_start(Run(parse_arguments(arguments)))
    assert snapshot() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "-"], "only --json, --ocsf and --list can be standard output"),
        (["--output", "report.xlsx"], "it promises another format than .xls"),
        (["--state", ""], "it is not the name of a file"),
        (["--role", "arn:aws:iam::111111111111:role/x"], "is not the name of a role"),
        (["--list", "-", "--state", "s.json"], "--list does not take --state"),
        (["--no-workbook", "--output", "x.xls"], "--no-workbook does not take --output"),
        (["--accept", "acc.txt", "--json", "acc.txt"], "--accept and --json are one file: acc.txt"),
        (["--json", "folder"], "folder is a folder, a disk or a socket, not a file"),
        (["--json", "loop.json"], f"cannot write loop.json: {os.strerror(errno.ELOOP)}"),
        (["--json", LONG], f"cannot write {LONG}: {os.strerror(errno.ENAMETOOLONG)}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.posix
def test_what_is_said_of_a_wrong_name(
    cloud: Cloud, things: None, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code_of(arguments)
    assert words in capsys.readouterr().err


@as_user
def test_what_is_write_protected_is_found_before(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.json").touch(0o400)
    Path("folder").mkdir(0o500)
    for name in ("x.json", "folder/x.json"):
        assert main(["--json", name]) == 2
        assert f"{name}" in capsys.readouterr().err
    assert cloud.layer.calls == []


# --- what is there --------------------------------------------------------------------


@pytest.mark.posix
def test_links_are_followed_and_their_targets_replaced(cloud: Cloud) -> None:
    for folder in ("reports", "links"):
        Path(folder).mkdir()
    Path("reports/old.xls").write_text("last month's")
    Path("links/latest.xls").symlink_to("../reports/old.xls")
    Path("links/again.xls").symlink_to("latest.xls")
    Path("links/new.json").symlink_to("../reports/new.json")
    Path("state.json").symlink_to("reports/state.json")
    names = ["--output", "links/again.xls", "--json", "links/new.json", "--state", "state.json"]
    for _ in range(2):
        assert main([*names, *QUICK]) == 0
    links = ("links/latest.xls", "links/again.xls", "links/new.json", "state.json")
    assert all(Path(name).is_symlink() for name in links)
    assert "EC2-Classic" in xlrd.open_workbook("reports/old.xls").sheet_names()
    (report,) = json.loads(Path("reports/new.json").read_text())["accounts"]
    assert report["workbook"] == str(Path("reports/old.xls").resolve())
    assert json.loads(Path("reports/state.json").read_text())["accounts"]
    visible = {name for name in paths() if not Path(name).name.startswith(".")}
    reports = {"reports", "reports/old.xls", "reports/new.json", "reports/state.json"}
    assert visible == {*reports, "links", *links}


@pytest.mark.posix
def test_a_target_is_replaced_in_one_move(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text("old")
    Path("link").symlink_to("x.json")
    with Path("x.json").open() as reader:
        LocalFile(Path("link")).write(b"new")
        assert reader.read() == "old"
    assert Path("x.json").read_text() == "new"
    assert paths() == {"x.json", "link"}


@pytest.mark.posix
def test_a_file_that_cannot_be_replaced_is_the_old_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text("old")
    Path("x.json").chmod(0o640)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(security_check, "keep_rights", full)
    with pytest.raises(OSError, match="No space"):
        LocalFile(Path("x.json")).write(b"new")
    assert snapshot() == {"x.json": (stat.S_IFREG | 0o640, "old")}
    assert not security_check.WRITING


@pytest.mark.posix
@pytest.mark.parametrize("rights", [0o600, 0o640, 0o664, 0o604])
def test_mode_and_group_of_what_is_there_stay(cloud: Cloud, rights: int) -> None:
    names = {"--output": "x.xls", "--json": "x.json", "--state": "s.json"}
    for name in names.values():
        Path(name).touch()
        Path(name).chmod(rights)
    Path("s.json").write_text('{"schema": 2, "accounts": {}}')
    group = next((one for one in os.getgroups() if one != os.getegid()), os.getegid())
    owner, group = (1234, 4321) if os.geteuid() == 0 else (os.geteuid(), group)
    for name in names.values():
        os.chown(name, owner, group)
    assert main([*(word for pair in names.items() for word in pair), *QUICK]) == 0
    for name in names.values():
        found = Path(name).stat()
        assert found.st_size > 100
        assert (mode(name), found.st_uid, found.st_gid) == (rights, owner, group)


@pytest.mark.posix
def test_what_a_group_may_is_not_given_to_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "not a member")

    monkeypatch.setattr(os, "fchown", refuse)
    path = tmp_path / "x"
    path.touch()
    path.chmod(0o664)
    LocalFile(path).write(b"x")
    assert mode(str(path)) == 0o600


@pytest.mark.posix
def test_what_is_new_is_for_its_owner_only(cloud: Cloud) -> None:
    before = os.umask(0)
    try:
        names = ["--output", "a/{account}/{date}/x.xls", "--csv", "c/d/e", "--json", "x.json"]
        assert main([*names, "--state", "s/{account}.json", *QUICK]) == 0
    finally:
        os.umask(before)
    found = {name: mode(name) for name in paths()}
    assert {Path(name).name for name in found} >= {"x.xls", "x.json", "c", "d", "e", "a", "s"}
    wanted = {name: 0o700 if Path(name).is_dir() else 0o600 for name in found}
    assert found == wanted
    assert f"c/d/e/{DEFAULT_ACCOUNT_ID}-ec2-classic.csv" in found


# --- without a workbook, and default names --------------------------------------------


def test_without_a_workbook(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--no-workbook", "--json", "x.json", "--csv", ".", *QUICK]) == 0
    assert not [name for name in paths() if name.endswith(".xls")]
    assert f"{DEFAULT_ACCOUNT_ID}-ec2-classic.csv" in paths()
    (report,) = json.loads(Path("x.json").read_text())["accounts"]
    assert report["workbook"] == ""
    last = capsys.readouterr().out.splitlines()[-1]
    assert last
    assert not last.endswith(".xls")


def test_without_a_workbook_of_several_accounts(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--json", "one.json", "--no-workbook", *QUICK])
    text = Path("one.json").read_text()
    Path("two.json").write_text(text.replace(DEFAULT_ACCOUNT_ID, "111111111111"))
    assert main(["--merge", "one.json", "two.json", "--no-workbook", "--json", "all.json"]) == 0
    assert paths() == {"one.json", "two.json", "all.json"}
    assert len(json.loads(Path("all.json").read_text())["accounts"]) == 2
    assert ".xls" not in capsys.readouterr().out


def test_default_names_do_not_meet(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = security_check.utc_now()
    monkeypatch.setattr(security_check, "utc_now", lambda: now)
    for _ in range(3):
        assert main(["--json", "x.json", *QUICK]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        (report,) = json.loads(Path("x.json").read_text())["accounts"]
        assert report["workbook"] == last
    name = f"security_check_{DEFAULT_ACCOUNT_ID}_{now:%Y-%m-%d_%H%M%S}"
    assert paths() == {f"{name}.xls", f"{name}-2.xls", f"{name}-3.xls", "x.json"}
    assert last == str(Path(f"{name}-3.xls").resolve())
    assert all(mode(name) == 0o600 for name in paths())


def test_names_that_were_given_are_replaced(cloud: Cloud) -> None:
    for _ in range(2):
        main(["--output", "{account}.xls", "--csv", "csv", *QUICK])
    name = f"{DEFAULT_ACCOUNT_ID}.xls"
    assert paths() == {name, "csv", f"csv/{DEFAULT_ACCOUNT_ID}-ec2-classic.csv"}


def test_overviews_with_default_names_do_not_meet(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["--json", "one.json", "--no-workbook", *QUICK])
    now = security_check.utc_now()
    monkeypatch.setattr(security_check, "utc_now", lambda: now)
    for _ in range(2):
        main(["--merge", "one.json"])
    name = f"security_check_overview_{now:%Y-%m-%d_%H%M%S}"
    assert paths() == {"one.json", f"{name}.xls", f"{name}-2.xls"}


@pytest.mark.parametrize("name", ["x.xls", "größe-監査.xls"], ids=["ASCII", "beyond ASCII"])
def test_an_overview_leads_to_a_workbook_of_any_name(cloud: Cloud, name: str) -> None:
    main(["--output", name, "--json", "x.json", *QUICK])
    main(["--merge", "x.json", "--output", "overview.xls"])
    book = xlrd.open_workbook("overview.xls", formatting_info=True)
    links = book.sheet_by_name("Accounts").hyperlink_map.values()
    assert {link.url_or_path for link in links if link.type == "local file"} == {
        name.encode() if name.isascii() else name
    }


def test_csv_files_of_an_earlier_run_are_named(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("csv").mkdir()
    for name in (f"{DEFAULT_ACCOUNT_ID}-mfa.csv", "111111111111-mfa.csv", "notes.csv"):
        Path("csv", name).write_text("last month's")
    told = f"security_check.py: csv also has {DEFAULT_ACCOUNT_ID}-mfa.csv of an earlier run\n"
    for options, words in ((QUICK, told), (["--quiet", *QUICK], ""), (["--check", "mfa"], "")):
        Path("csv", f"{DEFAULT_ACCOUNT_ID}-ec2-classic.csv").unlink(missing_ok=True)
        main(["--csv", "csv", "--no-workbook", *options])
        assert capsys.readouterr().err == words


def test_csv_files_of_an_account_that_cannot_be_opened_are_of_an_earlier_run(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("csv").mkdir()
    Path("csv/111111111111-mfa.csv").write_text("last month's")
    cloud.layer.faults = [Fault("AccessDenied", "sts", "AssumeRole", status=403)]
    arguments = ["--account", "111111111111", "--csv", "csv", "--json", "x.json"]
    assert main([*arguments, "--no-workbook", *QUICK]) == 3
    assert "csv also has 111111111111-mfa.csv of an earlier run" in capsys.readouterr().err


# --- the lock -------------------------------------------------------------------------


@pytest.fixture
def hold(cloud: Cloud) -> Iterator[Callable[[str], None]]:
    """Locks a file as another process would."""
    fcntl = pytest.importorskip("fcntl")
    with ExitStack() as stack:

        def lock(name: str) -> None:
            file = stack.enter_context(Path(name).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)

        yield lock


def test_a_state_that_another_run_holds_is_waited_for_and_then_told(
    cloud: Cloud,
    hold: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("copies")))
    waited: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock[0] += seconds

    fake = SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0])
    monkeypatch.setattr(security_check, "time", fake)
    hold(".s.json.lock")
    assert main(["--state", "s.json", "--output", "x.xls", *QUICK]) == 2
    waiting, line = capsys.readouterr().err.splitlines()
    where = str(Path(".s.json.lock").resolve())
    told = f"waiting up to 60 seconds for another run, which holds {where}"
    assert waiting == f"security_check.py: {told}"
    assert f"cannot write s.json: another run has held {where} for 60 seconds" in line
    copy = re.search(r"the results are in (\S+)", line)
    assert copy
    assert DEFAULT_ACCOUNT_ID in json.loads(Path(copy[1]).read_text())["accounts"]
    assert 60 <= sum(waited) < 61
    assert not Path("s.json").exists()


def test_a_state_that_is_held_as_long_as_usual_is_waited_for_in_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fcntl = pytest.importorskip("fcntl")
    slept: list[float] = []
    told: list[str] = []
    with (tmp_path / ".s.json.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(security_check, "time", SimpleNamespace(sleep=sleep, monotonic=int))
        LocalFile(tmp_path / "s.json", tell=told.append).update(lambda before: b"x")
    assert (len(slept), told) == (1, [])
    assert (tmp_path / "s.json").read_bytes() == b"x"


def test_a_folder_that_somebody_holds_holds_up_nobody(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(security_check, "LOCK_PATIENCE", 0)
    handle = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert main(["--state", "s.json", "--output", "x.xls", *QUICK]) == 0
    finally:
        os.close(handle)


def test_a_lock_file_that_was_left_behind_does_not_block(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security_check, "LOCK_PATIENCE", 0)
    Path(".s.json.lock").write_text("4711")
    for _ in range(2):
        assert main(["--state", "s.json", "--output", "x.xls", *QUICK]) == 0
    assert mode("s.json") == 0o600


def test_the_lock_is_beside_the_target_of_a_link(
    cloud: Cloud,
    hold: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(security_check, "LOCK_PATIENCE", 0)
    Path("real").mkdir()
    Path("link.json").symlink_to("real/s.json")
    hold("real/.s.json.lock")
    with pytest.raises(OSError, match=r"another run has held .*/real/\.s\.json\.lock"):
        LocalFile(Path("link.json")).update(lambda before: b"x")
    assert not Path("real/s.json").exists()


@pytest.mark.posix
def test_who_shares_a_state_shares_its_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.json").touch()
    Path("s.json").chmod(0o660)
    LocalFile(Path("s.json")).update(lambda before: b"x")
    assert mode(".s.json.lock") == 0o660
    LocalFile(Path("new.json")).update(lambda before: b"x")
    assert mode(".new.json.lock") == 0o600


# --- S3 -------------------------------------------------------------------------------


@pytest.fixture
def bucket(cloud: Cloud) -> Any:
    client = cloud.client("s3")
    client.create_bucket(Bucket=BUCKET)
    cloud.layer.calls.clear()
    return client


def keys(client: Any) -> set[str]:
    return {one["Key"] for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())}


def test_s3_in_capitals_is_s3(
    cloud: Cloud, bucket: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["--output", f"S3://{BUCKET}/x.xls", "--json", f"S3://{BUCKET}/x.json", *QUICK]) == 0
    )
    assert keys(bucket) == {"x.xls", "x.json"}
    assert paths() == set()
    assert capsys.readouterr().out.splitlines()[-1] == f"s3://{BUCKET}/x.xls"


def test_a_store_that_is_refused_keeps_nothing(
    cloud: Cloud, bucket: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = cloud.layer.app

    def careless(environ: dict[str, Any], start: Any) -> Any:
        environ.pop("HTTP_IF_MATCH", None)
        return app(environ, start)

    monkeypatch.setattr(cloud.layer, "app", careless)
    bucket.put_object(Bucket=BUCKET, Key="old.xls", Body=b"last month's")
    assert main(["--output", f"s3://{BUCKET}/old.xls"]) == 2
    assert "ignores conditions" in capsys.readouterr().err
    assert keys(bucket) == {"old.xls"}
    cloud.layer.faults = [Fault("AccessDenied", "s3", "DeleteObject", status=403)]
    assert main(["--output", f"s3://{BUCKET}/old.xls"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ignores conditions" in line


def test_nothing_is_ever_deleted_in_s3(cloud: Cloud, bucket: Any) -> None:
    names = [f"--{option}=s3://{BUCKET}/x.{option}" for option in ("json", "state")]
    main([*names, f"--output=s3://{BUCKET}/x.xls", f"--csv=s3://{BUCKET}/csv", *QUICK])
    assert cloud.layer.count()["s3:PutObject"] > 4
    assert "s3:DeleteObject" not in cloud.layer.count()


# --- what a signal says ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "writing", "words"),
    [
        ([], [], "nothing was written"),
        ([], ["s.json"], "nothing was written; perhaps s.json"),
        (["x.xls"], [], "x.xls written"),
        (["x.xls", "a.csv"], ["b.csv"], "x.xls and a.csv written; perhaps b.csv"),
        ([f"{n}.xls" for n in range(9)], [], "0.xls, 1.xls, 2.xls and 6 more written"),
    ],
)
def test_a_signal_says_what_was_written_and_what_may_be(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    written: list[str],
    writing: list[str],
    words: str,
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(security_check, "exit_now", ends.append)
    monkeypatch.setattr(security_check, "WRITTEN", written)
    monkeypatch.setattr(security_check, "WRITING", {*writing})
    security_check.on_signal(15, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("security_check.py: interrupted by SIGTERM: ")
    assert line.endswith(words)
    assert ends == [143]


def test_a_signal_ends_the_run_though_nobody_reads_what_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[int] = []
    told: list[bool] = []
    read = threading.Event()
    monkeypatch.setattr(security_check, "exit_now", ends.append)
    monkeypatch.setattr(security_check, "READER_PATIENCE", 0.01)
    monkeypatch.setattr(security_check, "print_message", lambda *_: told.append(read.wait(10)))
    security_check.on_signal(15, None)
    assert (ends, told) == ([143], [])
    read.set()


def test_all_files_of_a_run_are_known_as_written(cloud: Cloud) -> None:
    names = ["--output", "x.xls", "--json", "x.json", "--state", "s.json", "--csv", "csv"]
    main([*names, *QUICK])
    first, *tables, report, state = security_check.WRITTEN
    assert (first, report, state) == ("x.xls", "x.json", "s.json")
    assert {*tables} == {str(path) for path in Path("csv").iterdir()}
    assert not security_check.WRITING
    with pytest.raises(CannotRun):
        security_check.write_or_save_copy(LocalFile(Path("nowhere/x")), b"x")
    assert "nowhere/x" not in security_check.WRITTEN
