"""Fixtures: a canned account (Stubber) for answers, and a cloud (moto) for runs."""

from __future__ import annotations

import gc
import io
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Before moto, which reads the configuration of the real account when it is imported.
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]

import boto3
import botocore.client
import botocore.endpoint_provider
import botocore.handlers
import botocore.hooks
import botocore.loaders
import pytest
from botocore import xform_name
from botocore.stub import Stubber

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import cloud as cloud_module
from example import CLOSED, MEMBERS, SOEHNE, TOKYO, Organization, fill_organization
from reading import NOW, NUMBER

import security_check
from security_check import Account, Report

__all__ = ["NOW", "NUMBER"]  # from `reading`


class Canned(Account):
    """An account whose answers are given beforehand, held to the API's own model.

    An answer is consumed once and in order, per service and region; a call that was not
    expected, or an answer that was not asked for, fails the test.
    """

    def __init__(self, **options: Any) -> None:
        keys: Any = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "secret"}
        region = options.pop("region", "us-east-1")
        now = options.pop("now", NOW)
        super().__init__(boto3.Session(region_name=region, **keys), now, **options)
        self.number, self.arn = NUMBER, f"arn:aws:iam::{NUMBER}:user/auditor"
        self.stubs: dict[tuple[str, str], Stubber] = {}

    def client(self, service: str, region: str) -> Any:
        """A client that answers what was given to it, and asks nobody else."""
        client = super().client(service, region)
        with self.lock:
            if (service, region) not in self.stubs:
                self.stubs[service, region] = Stubber(client)
                self.stubs[service, region].activate()
        return client

    def stub(self, service: str, region: str = "") -> Stubber:
        region = region or self.home_region
        self.client(service, region)
        return self.stubs[service, region]

    def answer(
        self,
        service: str,
        operation: str,
        answer: dict[str, Any],
        region: str = "",
        params: dict[str, Any] | None = None,
    ) -> Canned:
        """The next answer of the service in the region; `params` are checked when given."""
        self.stub(service, region).add_response(xform_name(operation), answer, params)
        return self

    def refuse(
        self, service: str, operation: str, code: str = "AccessDenied", region: str = ""
    ) -> Canned:
        self.stub(service, region).add_client_error(xform_name(operation), code)
        return self

    def assert_all_asked(self) -> None:
        for stub in self.stubs.values():
            stub.assert_no_pending_responses()


def audited(*arguments: str, workbook: bool = False) -> Report:
    """What the program finds in the account that boto3 is configured for, as data."""
    files = ["--output", "x.xls"] if workbook else ["--no-workbook"]
    options = security_check.parse_arguments([*files, *arguments])
    run = security_check.Run(options)
    aws = security_check.connect(options, None)
    job = security_check.AccountJob(aws.number)
    return security_check.audit_account(run, aws, job, lambda text: None)


def assert_refused(
    cloud: cloud_module.Cloud, capsys: pytest.CaptureFixture[str], *arguments: str
) -> None:
    """The program will not even begin: one line, exit code 2, and no call was made."""
    with pytest.raises(SystemExit) as stop:
        security_check.main(arguments)
    assert stop.value.code == 2
    lines = re.findall("^security_check.py: error: ", capsys.readouterr().err, re.MULTILINE)
    assert len(lines) == 1
    assert cloud.layer.calls == []


class Clock:
    """The time of day for the program, which stands still until it is set again."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def set(self, moment: str) -> None:
        """`moment` is a day, at a quarter past six as cron would have it, or more exact; UTC."""
        text = moment if "T" in moment else f"{moment}T06:15:00"
        now = datetime.fromisoformat(text).replace(tzinfo=timezone.utc)
        self.patch.setattr(security_check, "utc_now", lambda: now)


def patient(folder: Path) -> dict[str, str]:
    """The environment of a program that waits for an answer as long as it takes."""
    (folder / "sitecustomize.py").write_text(
        "from botocore.httpsession import URLLib3Session\n"
        "init = URLLib3Session.__init__\n"
        "URLLib3Session.__init__ = lambda *a, **k: init(*a, **{**k, 'timeout': 3600})\n"
    )
    return {"PYTHONPATH": str(folder)}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "survives_bugs: the test provokes an internal error")
    config.addinivalue_line("markers", "posix: the test needs what Windows does not have")
    config.addinivalue_line("markers", "first: the test takes seconds, so it starts first")
    for name in ("SIGINT", "SIGHUP"):  # a background job ignores them, and so would its programs
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a class read what was run once for them, so they share a process. All others
    go one by one to whichever is free, in their order: what takes long comes first."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    def shared(nodeid: str) -> str:
        test, _, _ = nodeid.partition("[")
        return test.rpartition("::")[0] if test.count("::") > 1 else nodeid

    if config.getoption("dist") != "load":
        return None
    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = shared
    return scheduling


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
    for item in items:
        if sys.platform == "win32" and item.get_closest_marker("posix"):
            item.add_marker(pytest.mark.skip(reason="not on Windows"))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector need not look at it in every round."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_sessionfinish() -> None:
    """pytest looks through everything five times at the end, which takes seconds."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many faults were injected into runs, and what became of them."""
    reports = [one for found in terminalreporter.stats.values() for one in found]
    told = Counter(
        value
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "outcome of a fault" and report.when == "call"
    )
    if told:
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in told.items())
        terminalreporter.write_line(f"{told.total()} faults injected: {outcomes}")


@pytest.fixture
def aws() -> Iterator[Canned]:
    account = Canned()
    yield account
    account.assert_all_asked()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets the time for the program: `clock.set("2030-08-01")`."""
    return Clock(monkeypatch)


class Once:
    """Results by key; `kept` is what the key holds the ID of, so that no other object gets it."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, key: Any, make: Callable[[], Any], kept: Any = None) -> Any:
        if key not in self.known:
            self.known[key] = make(), kept
        return self.known[key][0]


@pytest.fixture(scope="session", autouse=True)
def botocore_learns_once() -> Iterator[None]:
    """botocore does once for all sessions of the tests what it else does for each session or
    client, and what always comes out the same: it is slow."""
    loader = botocore.loaders.create_loader()
    alias = vars(botocore.hooks.EventAliaser)["_alias_event_name"]
    make_class = vars(botocore.client.ClientCreator)["_create_client_class"]
    make_rules, inspect_hook = botocore.endpoint_provider.RuleSet, botocore.hooks.accepts_kwargs
    once = Once()
    patches = {
        "session.create_loader": lambda *_: loader,
        "hooks.EventAliaser._alias_event_name": lambda events, name: once(
            ("event", name), lambda: alias(events, name)
        ),
        "hooks.accepts_kwargs": lambda hook: once(
            ("hook", getattr(hook, "__code__", id(hook))), lambda: inspect_hook(hook), hook
        ),
        "client.ClientCreator._create_client_class": lambda maker, name, model: once(
            ("class", name, *model.operation_names), lambda: make_class(maker, name, model)
        ),
        "endpoint_provider.RuleSet": lambda **data: once(
            ("rules", id(data["rules"])), lambda: make_rules(**data), data
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, quicker in patches.items():
            patch.setattr(f"botocore.{name}", quicker)
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[cloud_module.Cloud]:
    """The one AWS of all tests of this process. Who asks it from here needs no connection."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with cloud_module.running() as running, pytest.MonkeyPatch.context() as patch:
        here = ("before-send", running.answer_here, botocore.handlers.REGISTER_LAST)
        every = [*botocore.handlers.BUILTIN_HANDLERS, here]
        patch.setattr("botocore.handlers.BUILTIN_HANDLERS", every)
        yield running


def enter(server: cloud_module.Cloud, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Configure boto3 to go to the server, and go to the folder."""
    for name, value in server.environment.items():
        patch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    patch.chdir(folder)


def forbid_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours fails the test in which it shows, though a run would survive it."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("internal error") from sys.exc_info()[1]

    monkeypatch.setattr("traceback.print_exc", fail)


@contextmanager
def in_an_account(server: cloud_module.Cloud, folder: Path) -> Iterator[cloud_module.Cloud]:
    """What the fixtures `cloud` and `no_internal_error` are to a test, for runs that several
    tests only read."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        server.reset()
        enter(server, monkeypatch, folder)
        forbid_bugs(monkeypatch)
        yield server


@pytest.fixture
def cloud(
    server: cloud_module.Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> cloud_module.Cloud:
    """An empty account; boto3 is configured to go there, the folder is empty."""
    server.reset()
    enter(server, monkeypatch, tmp_path)
    return server


@pytest.fixture
def over_http(cloud: cloud_module.Cloud) -> None:
    """All calls to the account go over a connection."""
    cloud.over_http = True


BUCKET = "reports"


@pytest.fixture
def bucket(cloud: cloud_module.Cloud) -> Any:
    """A client for S3, where there is a bucket for the reports; it does not count as a call."""
    client = cloud.client("s3")
    client.create_bucket(Bucket=BUCKET)
    cloud.layer.calls.clear()
    return client


def objects(client: Any, bucket: str = BUCKET) -> dict[str, bytes]:
    """What is in the bucket, by key."""
    found = client.list_objects_v2(Bucket=bucket).get("Contents", ())
    return {
        one["Key"]: client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in found
    }


def fill_small_org(server: cloud_module.Cloud) -> Organization:
    members = [member for member in MEMBERS if member.number in (SOEHNE, TOKYO, CLOSED)]
    return fill_organization(server, members=members, management=False)


@pytest.fixture
def small_org(cloud: cloud_module.Cloud) -> Organization:
    """Three members, of which one cannot be entered; the management account is empty."""
    return fill_small_org(cloud)


@pytest.fixture
def org_with_bucket(small_org: Organization, bucket: Any) -> Organization:
    """The same, with a bucket for the reports."""
    return small_org


@dataclass(frozen=True)
class OrgRun:
    """A run over the whole organization: the overview is `reports/o.xls`, beside it is the
    workbook of each account; the JSON is `o.json`; `alone` is the JSON of each account by a
    run of its own."""

    organization: Organization
    folder: Path
    code: int
    out: str
    calls: list[cloud_module.Call]

    @property
    def overview(self) -> Path:
        return self.folder / "reports/o.xls"

    def alone(self, number: str) -> Path:
        return self.folder / f"{number}.json"


@pytest.fixture(scope="session")
def full_org_run(server: cloud_module.Cloud, tmp_path_factory: pytest.TempPathFactory) -> OrgRun:
    """The one run over the full organization. A class reads it, so that it is made once."""
    folder, out = tmp_path_factory.mktemp("full_org"), io.StringIO()
    (folder / "reports").mkdir()
    with in_an_account(server, folder), redirect_stdout(out):
        organization = fill_organization(server)
        files = ["--json", "o.json", "--output", "reports/o.xls"]
        code = security_check.main(["--organization", *files])
        told, calls = out.getvalue(), [*server.layer.calls]
        for number in organization.audited:
            with patch.dict("os.environ", server.credentials(number)):
                security_check.main(["--json", f"{number}.json", "--output", "alone.xls"])
    return OrgRun(organization, folder, code, told, calls)


@pytest.fixture(autouse=True)
def no_internal_error(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A bug of ours fails the test in which it shows, though a run would survive it."""
    if "survives_bugs" not in request.keywords:
        forbid_bugs(monkeypatch)
