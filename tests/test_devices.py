"""What has a name and is no regular file, and what ends a run: real processes, devices, pipes."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cloud import DEFAULT_ACCOUNT_ID, Cloud, Fault

import security_check
from security_check import LocalFile, main

pytestmark = pytest.mark.posix
PROGRAM = [sys.executable, str(security_check.__file__)]
QUICK = ("--check", "ec2-classic")  # nothing to find in an empty account
OUR_STREAMS = Path("/proc/self/fd")
linux = pytest.mark.skipif(not OUR_STREAMS.exists(), reason="needs Linux")


def environment(cloud: Cloud, copies: Path) -> dict[str, str]:
    """For a process; `copies` is where it saves what cannot be written."""
    return {"PATH": os.environ["PATH"], "TMPDIR": str(copies), **cloud.environment}


@pytest.fixture
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


def started(cloud: Cloud, copies: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = streams | {"env": environment(cloud, copies), "text": True} | options
    return subprocess.Popen([*PROGRAM, *arguments], **options)


def accounts(text: str | bytes) -> list[str]:
    return [one["account"] for one in json.loads(text)["accounts"]]


# --- devices --------------------------------------------------------------------------


@pytest.fixture
def null(tmp_path: Path) -> Path:
    """A device like /dev/null that a broken program may replace."""
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.write_bytes(b"x")
    except (AttributeError, OSError) as error:
        pytest.skip(f"no device can be made, or used, here: {error}")
    return path


@linux
def test_a_device_is_written_into_and_not_replaced(
    cloud: Cloud, null: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = null.stat()
    names = ["--output", "null", "--json", "null"]
    assert main([*names, *QUICK]) == 0
    after = null.stat()
    assert stat.S_ISCHR(after.st_mode)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert [path.name for path in Path().iterdir()] == ["null"]
    assert capsys.readouterr().out.splitlines()[-1] == str(null)


@linux
def test_a_device_is_no_state(cloud: Cloud, null: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", "null"]) == 2
    assert "null is a device or a pipe: it remembers nothing" in capsys.readouterr().err
    assert cloud.layer.calls == []


@linux
def test_a_link_to_a_device_is_written_into(cloud: Cloud, null: Path) -> None:
    Path("x.xls").symlink_to("null")
    assert main(["--output", "x.xls", *QUICK]) == 0
    assert Path("x.xls").is_symlink()
    assert stat.S_ISCHR(null.stat().st_mode)


@linux
@pytest.mark.skipif(os.geteuid() == 0, reason="would replace it for the machine, if broken")
def test_dev_null_is_written_into(cloud: Cloud) -> None:
    assert main(["--output", "/dev/null", *QUICK]) == 0


@linux
def test_a_disk_is_refused(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")
    assert main(["--output", "disk"]) == 2
    assert "disk is a folder, a disk or a socket, not a file" in capsys.readouterr().err
    assert cloud.layer.calls == []


# --- streams --------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(
    ("descriptor", "stream"), [(1, "stdout"), (2, "stderr")], ids=["stdout", "stderr"]
)
def test_a_stream_that_is_a_pipe_gets_it(
    cloud: Cloud, copies: Path, tmp_path: Path, descriptor: int, stream: str
) -> None:
    (tmp_path / "name").symlink_to(OUR_STREAMS / str(descriptor))
    process = started(cloud, copies, "--json", "name", "--no-workbook", "--quiet", *QUICK)
    told = dict(zip(("stdout", "stderr"), process.communicate(), strict=True))
    assert process.returncode == 0
    assert accounts(told.pop(stream)) == [DEFAULT_ACCOUNT_ID]
    assert [*told.values()] == [""]
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    assert (tmp_path / "name").is_symlink()


@linux
@pytest.mark.parametrize("descriptor", [1, 2], ids=["stdout", "stderr"])
def test_a_stream_that_is_a_file_keeps_what_was_said(
    cloud: Cloud, copies: Path, tmp_path: Path, descriptor: int
) -> None:
    (tmp_path / "name").symlink_to(OUR_STREAMS / str(descriptor))
    with Path("log").open("a") as log:
        log.write("before\n")
        log.flush()
        inode = Path("log").stat().st_ino
        stream = {"stdout" if descriptor == 1 else "stderr": log}
        names = ["--json", "name", "--no-workbook", "--quiet"]
        process = started(cloud, copies, *names, *QUICK, **stream)
        process.communicate()
    assert process.returncode == 0
    assert Path("log").stat().st_ino == inode
    before, _, text = Path("log").read_text().partition("\n")
    assert before == "before"
    assert accounts(text) == [DEFAULT_ACCOUNT_ID]


@linux
def test_what_follows_on_standard_output_follows_in_its_file(
    cloud: Cloud, copies: Path, tmp_path: Path
) -> None:
    (tmp_path / "name.txt").symlink_to(OUR_STREAMS / "1")
    with Path("log").open("a") as log:
        process = started(cloud, copies, "--csv", "t", "--json", "name.txt", *QUICK, stdout=log)
        process.communicate()
    text = Path("log").read_text()
    assert "0 findings" in text
    assert accounts(text[text.index("{\n") :]) == [DEFAULT_ACCOUNT_ID]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("option", ["--json", "--ocsf"])
def test_standard_output_that_is_full_hides_no_other_failure(
    cloud: Cloud, copies: Path, option: str
) -> None:
    names = ["--output", "/dev/full", option, "-", "--state", "s.json"]
    with Path("/dev/full").open("w") as full:
        process = started(cloud, copies, *names, *QUICK, stdout=full)
        _, err = process.communicate()
    assert process.returncode == 2
    copy, _, rest = err.partition("the results are in ")[2].partition("; ")
    assert copies in Path(copy).parents
    assert rest.startswith("cannot write to standard output: ")
    assert not Path("s.json").exists()


# --- pipes ----------------------------------------------------------------------------

PIPE_SIZE = 4096  # bytes, less than any report


@contextmanager
def small_pipe(name: str) -> Iterator[int]:
    """A named pipe that holds less than a report; who writes a report into it has to wait."""
    import fcntl

    os.mkfifo(name)
    handle = os.open(name, os.O_RDWR)
    fcntl.fcntl(handle, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    try:
        yield handle
    finally:
        with suppress(OSError):  # closed by the test
            os.close(handle)


def wait_until_written(handle: int) -> None:
    assert select.select([handle], [], [], 60)[0]


def test_a_pipe_gets_the_whole_report(cloud: Cloud, tmp_path: Path) -> None:
    for name in ("x.xls", "x.json"):
        os.mkfifo(name)
    with ThreadPoolExecutor(2) as pool:
        read = [pool.submit(Path(name).read_bytes) for name in ("x.xls", "x.json")]
        assert main(["--output", "x.xls", "--json", "x.json", *QUICK]) == 0
        workbook, report = (one.result() for one in read)
    assert workbook.startswith(b"\xd0\xcf\x11\xe0")
    assert accounts(report) == [DEFAULT_ACCOUNT_ID]
    assert {path.name for path in tmp_path.iterdir()} == {"x.xls", "x.json"}
    assert all(stat.S_ISFIFO(path.stat().st_mode) for path in tmp_path.iterdir())


def test_process_substitution(cloud: Cloud, copies: Path, tmp_path: Path) -> None:
    command = '"$@" --json >(cat >&3) --accept <(echo "mfa/x # gone") --no-workbook --quiet'
    ran = subprocess.run(
        ["bash", "-c", f"exec 3>&1 && {command}", "bash", *PROGRAM, *QUICK],
        env=environment(cloud, copies),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert accounts(ran.stdout) == [DEFAULT_ACCOUNT_ID]
    assert [*tmp_path.iterdir()] == []


@linux
def test_a_reader_that_goes_away_is_said_and_the_report_kept(cloud: Cloud, copies: Path) -> None:
    with small_pipe("pipe") as handle:
        process = started(cloud, copies, "--json", "pipe", "--no-workbook")
        wait_until_written(handle)
        os.close(handle)
        _, err = process.communicate()
    assert process.returncode == 2
    why, _, where = err.strip().partition("; the results are in ")
    assert why.endswith("cannot write pipe: Broken pipe")
    assert accounts(Path(where).read_text()) == [DEFAULT_ACCOUNT_ID]
    assert copies in Path(where).parents
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)


# --- signals --------------------------------------------------------------------------

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@linux
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_says_what_was_written_and_what_perhaps(
    cloud: Cloud, copies: Path, number: signal.Signals
) -> None:
    with small_pipe("pipe") as handle:
        names = ["--output", "x.xls", "--json", "pipe", "--state", "s.json"]
        process = started(cloud, copies, *names)
        wait_until_written(handle)
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 128 + number
    told = f"interrupted by {number.name}: x.xls written; perhaps pipe"
    assert err == f"security_check.py: {told}\n"
    assert Path("x.xls").exists()
    assert not Path("s.json").exists()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_before_anything_was_written(
    cloud: Cloud, copies: Path, tmp_path: Path, number: signal.Signals
) -> None:
    cloud.layer.faults = [Fault("hang", "ec2", "DescribeInstances")]
    Path("x.xls").write_text("last month's")
    process = started(cloud, copies, "--output", "x.xls", *QUICK, "--region", "us-east-1")
    cloud.layer.wait_for("DescribeInstances")
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert err == f"security_check.py: interrupted by {number.name}: nothing was written\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.xls": "last month's"}


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_what_nohup_and_background_jobs_ignore_stays_ignored(
    cloud: Cloud, copies: Path, number: signal.Signals
) -> None:
    def ignore() -> None:
        signal.signal(number, signal.SIG_IGN)

    with small_pipe("pipe") as handle:
        names = ["--json", "pipe", "--no-workbook", "--quiet"]
        process = started(cloud, copies, *names, preexec_fn=ignore)
        wait_until_written(handle)
        process.send_signal(number)
        reader = os.open("pipe", os.O_RDONLY)
        os.close(handle)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        process.communicate()
    assert process.returncode in (0, 1)
    assert accounts(text) == [DEFAULT_ACCOUNT_ID]


# --- several runs ---------------------------------------------------------------------


def test_the_lock_of_a_process_that_died_does_not_block(
    cloud: Cloud, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security_check, "LOCK_PATIENCE", 0)
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    file = "open(sys.argv[1], 'a')"
    code = f"import fcntl, sys; f = {file}; fcntl.flock(f, fcntl.LOCK_EX); print(flush=True)"
    holder = subprocess.Popen([sys.executable, "-c", f"{code}; input()", ".s.json.lock"], **pipes)
    assert holder.stdout
    holder.stdout.readline()
    given = ["--state", "s.json", "--no-workbook", *QUICK]
    assert main(given) == 2
    holder.kill()
    holder.communicate()
    assert main(given) == 0
    assert Path(".s.json.lock").exists()


def test_runs_at_the_same_moment_have_a_default_name_each(tmp_path: Path) -> None:
    file = LocalFile(tmp_path / "x.xls", numbered=True)
    texts = [str(number).encode() for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        names = [*pool.map(file.write, texts)]
    assert len({*names}) == 64
    assert [Path(name).read_bytes() for name in names] == texts
    assert {str(path) for path in tmp_path.iterdir()} == {*names}


def test_runs_at_the_same_moment_lose_nothing_of_a_state(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from security_check import LocalFile\n"
        "for _ in range(20): LocalFile(Path('s')).update(lambda before: (before or b'') + b'x')"
    )
    home = str(Path(security_check.__file__).parent)
    ran = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": home})
        for _ in range(4)
    ]
    assert [process.wait() for process in ran] == [0] * 4
    assert (tmp_path / "s").read_text() == "x" * 80
