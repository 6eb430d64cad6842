"""An AWS on 127.0.0.1: moto's HTTP server behind a layer that moto lacks.

The layer counts calls, delays and throttles them, injects faults, and answers what moto
cannot: VPC block public access, bucket regions, a credential report with a root row, the list
of an organization's accounts and who may enter them, and what a function of Lambda answers,
which is called in this process. A request acts in the account that its
access key belongs to; a key that nobody made belongs to DEFAULT_ACCOUNT_ID.

Who asks from this process gets the same answers without a connection, which costs half of the
time, unless `over_http` is set or a fault is one of connections.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import os
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

# Before moto, which else gives each region of each account 1,300 machine images.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"

import boto3
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError
from moto import backends
from moto.core import responses
from moto.core.config import default_user_config
from moto.core.utils import method_names_from_class
from moto.ec2.models.availability_zones_and_regions import Region, RegionsAndZonesBackend
from moto.iam.models import get_account_id_from
from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.organizations import utils
from moto.organizations.models import organizations_backends
from moto.s3.models import s3_backends
from urllib3 import HTTPHeaderDict, HTTPResponse
from werkzeug.serving import make_server

DEFAULT_ACCOUNT_ID = "123456789012"  # moto's
REGIONS = ("eu-west-1", "us-east-1", "us-west-2")
S3_OPERATIONS = {
    "acl": "GetBucketAcl",
    "policyStatus": "GetBucketPolicyStatus",
    "publicAccessBlock": "GetPublicAccessBlock",
}
PAGE = 20  # accounts, at most, that ListAccounts gives at once
T = TypeVar("T")

# moto else looks for the methods of a class at every call.
setattr(responses, "method_names_from_class", functools.cache(method_names_from_class))  # noqa: B010

# One session for all clients that fill accounts: it keeps what it has read of the services.
SESSION: Any = boto3.Session()


@dataclass(frozen=True)
class Call:
    """A request, in AWS's terms; `text` is its path and body, for what it is about, and
    `account` the one whose credentials it has."""

    service: str
    operation: str
    region: str
    text: str
    account: str = DEFAULT_ACCOUNT_ID

    @property
    def name(self) -> str:
        return f"{self.service}:{self.operation}"

    def about(self, resource: str) -> bool:
        """Whether the call names the resource, as a whole word."""
        return re.search(rf"(?<![\w.-]){re.escape(resource)}(?![\w.-])", self.text) is not None


@dataclass
class Fault:
    """What to do to the calls that match: `kind` is an error code, or rubbish, or die (a
    function does), or one of CONNECTION, or silence, which is what hang comes to without its
    time, and without a connection; `times` limits how often (-1: for good), `after` so many
    that pass."""

    kind: str
    service: str = "*"
    operation: str = "*"
    region: str = "*"
    resource: str = ""
    status: int = 400
    times: int = -1
    account: str = "*"
    after: int = 0
    hits: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self, call: Call) -> bool:
        names = ("service", "operation", "region", "account")
        if not all(fnmatchcase(getattr(call, name), getattr(self, name)) for name in names):
            return False
        if self.resource and not call.about(self.resource):
            return False
        with self.lock:
            if self.after:
                self.after -= 1
                return False
            if self.hits == self.times:
                return False
            self.hits += 1
            return True


class Bucket:
    """A token bucket as AWS throttles with: `burst` at once, then `rate` a second."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.tokens = rate, burst, burst
        self.last = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.tokens = min(self.burst, self.tokens + (now - self.last) * self.rate)
        self.last = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


# Faults of a connection: it stays open without an answer, or ends before or within one.
CONNECTION = ("hang", "drop", "truncate")

# IAM by account, the others by account and region: calls a second, after a burst.
LIMITS = {"iam": (20, 30), "ec2": (20, 100), "cloudtrail": (10, 10)}
THROTTLING = {
    "iam": "Throttling",
    "ec2": "RequestLimitExceeded",
    "cloudtrail": "ThrottlingException",
}


def parse(environ: dict[str, Any], body: bytes, account_of: Callable[[str], str]) -> Call:
    scope = re.search(
        r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", "")
    )
    key, region, service = scope.groups() if scope else ("", "", "")
    path = unquote(environ["PATH_INFO"])
    text = f"{path} {unquote(body.decode('latin-1'))}"
    if service == "s3" and path.startswith("/v20180820/"):
        service, operation = "s3control", "GetPublicAccessBlock"
    elif "HTTP_X_AMZ_TARGET" in environ:
        operation = environ["HTTP_X_AMZ_TARGET"].rpartition(".")[2]
    elif service == "lambda" and path.endswith("/invocations"):
        operation = "Invoke"
    elif service == "s3":
        operation = s3_operation(environ["REQUEST_METHOD"], path, environ.get("QUERY_STRING", ""))
    else:
        operation = parse_qs(body.decode("latin-1")).get("Action", ["?"])[0]
    return Call(service, operation, region, text, account_of(key))


def s3_operation(method: str, path: str, query: str) -> str:
    if path == "/":
        return "ListBuckets"
    flag = query.partition("&")[0].partition("=")[0]
    if flag == "list-type":
        return "ListObjectsV2"
    if "/" in path.strip("/") and not flag:
        return {"GET": "GetObject", "PUT": "PutObject"}.get(method, method)
    other = f"{method} {flag}".strip()
    return S3_OPERATIONS.get(flag, other) if method == "GET" else other


def error_answer(call: Call, code: str) -> tuple[str, str]:
    """An error in the protocol's own form: content type and body."""
    message = f"User is not authorized to perform: {call.name} ({code})"
    if call.service in ("cloudtrail", "lambda", "organizations"):
        return "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message})
    error = f"<Code>{code}</Code><Message>{message}</Message>"
    if call.service == "ec2":
        error = (
            f"<Response><Errors><Error>{error}</Error></Errors><RequestID>1</RequestID></Response>"
        )
    elif call.service == "s3":
        error = f"<Error>{error}<RequestId>1</RequestId></Error>"
    else:
        error = f"<Error><Type>Sender</Type>{error}</Error><RequestId>1</RequestId>"
        error = f"<ErrorResponse>{error}</ErrorResponse>"
    return "text/xml", f'<?xml version="1.0" encoding="UTF-8"?>{error}'


@dataclass
class BlockPublicAccess:
    mode: str = "off"
    exclusions: tuple[tuple[str, str, str], ...] = ()  # mode, ARN, state

    def options(self) -> str:
        mode = f"<internetGatewayBlockMode>{self.mode}</internetGatewayBlockMode>"
        name = "vpcBlockPublicAccessOptions"
        return f"<{name}>{mode}<state>update-complete</state></{name}>"

    def excluded(self) -> str:
        items = "".join(
            f"<item><internetGatewayExclusionMode>{mode}</internetGatewayExclusionMode>"
            f"<resourceArn>{arn}</resourceArn><state>{state}</state></item>"
            for mode, arn, state in self.exclusions
        )
        return f"<vpcBlockPublicAccessExclusionSet>{items}</vpcBlockPublicAccessExclusionSet>"


class Layer:
    """The WSGI application in front of moto's."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.heard = threading.Condition(self.lock)  # of a call, for who waits for one
        self.turn = threading.Lock()  # a function serves one event at a time
        self.objects = threading.Lock()  # S3 is atomic: moto compares, and then puts
        self.reset()

    def reset(self) -> None:
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.delay = 0.0
        self.buckets: dict[Any, Bucket] | None = None
        self.foreign = 0.0  # the share of calls that are refused whatever we do
        self.dice = random.Random(1)
        self.throttled = 0
        self.block_public_access: dict[str, BlockPublicAccess] = {}
        self.root: dict[str, str] = {}
        self.summary: dict[str, int] = {}
        self.report: Callable[[str], str] = lambda text: text
        self.function: Callable[[dict[str, Any]], Any] = lambda event: None
        self.reset_accounts()

    def reset_accounts(self) -> None:
        """What there is to say where there are several accounts: `summary`, `root` and
        `block_public_access` are those of DEFAULT_ACCOUNT_ID."""
        self.keys: dict[str, str] = {}  # access key -> account
        self.summaries: dict[str, dict[str, int]] = {}
        self.roots: dict[str, dict[str, str]] = {}
        self.blocks: dict[str, dict[str, BlockPublicAccess]] = {}
        self.closed: set[str] = set()  # accounts that nobody may enter
        self.roles: set[str] | None = None  # with their paths, in every account; None: any
        self.administrators: set[str] = set()  # accounts that may list the organization's too
        self.states: tuple[str, ...] = ("State",)  # or "Status", as AWS said until 2026-09-09
        self.pages: Callable[[list[Any]], list[list[Any]]] = lambda accounts: [
            accounts[start : start + PAGE] for start in range(0, len(accounts), PAGE)
        ]

    def account_of(self, key: str) -> str:
        """The account of an access key: kept, as moto looks through all of its accounts."""
        if key not in self.keys:
            self.keys[key] = get_account_id_from(key)
        return self.keys[key]

    def count(self) -> Counter[str]:
        return Counter(call.name for call in self.calls)

    def wait_for(self, operation: str, resource: str = "") -> None:
        """Wait until another process has made such a call."""

        def made() -> bool:
            return any(
                call.operation == operation and (not resource or call.about(resource))
                for call in self.calls
            )

        with self.heard:
            assert self.heard.wait_for(made, timeout=300), f"nobody called {operation}"

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        environ["wsgi.input"] = io.BytesIO(body)
        call = parse(environ, body, self.account_of)
        with self.lock:
            self.calls.append(call)
            self.heard.notify_all()
            throttled = self.throttles(call)
        if self.delay:
            self.ended.wait(self.delay)
        if throttled:
            return self.refuse(
                call, THROTTLING[call.service], 503 if call.service == "ec2" else 400, start
            )
        for fault in list(self.faults):
            if fault.strikes(call):
                return self.inject(fault, call, environ, start)
        return self.answer(call, environ, start)

    def throttles(self, call: Call) -> bool:
        if self.buckets is None or call.service not in LIMITS:
            return False
        if self.foreign:  # others use up the account's limits
            refused = self.dice.random() < self.foreign
            self.throttled += refused
            return refused
        where = "" if call.service == "iam" else call.region
        what = call.operation if call.service == "cloudtrail" else ""
        key = (call.service, call.account, where, what)
        bucket = self.buckets.setdefault(key, Bucket(*LIMITS[call.service]))
        refused = not bucket.take()
        self.throttled += refused
        return refused

    def refuse(self, call: Call, code: str, status: int, start: Any) -> Iterable[bytes]:
        kind, text = error_answer(call, code)
        length = ("Content-Length", str(len(text)))
        start(f"{status} Error", [("Content-Type", kind), length, ("x-amzn-RequestId", "1")])
        return [text.encode()]

    def inject(
        self, fault: Fault, call: Call, environ: dict[str, Any], start: Any
    ) -> Iterable[bytes]:
        if fault.kind == "hang":
            self.ended.wait()
        if fault.kind == "silence":
            raise ReadTimeoutError(endpoint_url=environ["RAW_URI"])
        if fault.kind in ("hang", "drop"):
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if fault.kind == "rubbish":
            start("200 OK", [("Content-Type", "text/html"), ("Content-Length", "27")])
            return [b"<html>Please sign in</html>"]
        if fault.kind == "truncate":
            status, headers, text = self.collect(call, environ)
            start(status, headers)  # with the length of the whole
            return [text[: len(text) // 2]]
        if fault.kind == "die":  # for want of time, or of memory
            return self.give("Runtime.ExitError", "Error: Runtime exited", start)
        return self.refuse(call, fault.kind, fault.status, start)

    def collect(self, call: Call, environ: dict[str, Any]) -> tuple[str, list[Any], bytes]:
        began: list[Any] = []
        text = b"".join(self.answer(call, environ, lambda *args: began.extend(args)))
        return began[0], began[1], text

    def answer(self, call: Call, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if call.service == "s3" and self.is_foreign(call):
            return self.refuse(call, "AccessDenied", 403, start)
        if call.operation == "AssumeRole" and (code := self.why_not(environ)):
            return self.refuse(call, code, 400 if code == "ValidationError" else 403, start)
        if call.name == "lambda:Invoke":
            return self.invoke(json.loads(environ["wsgi.input"].getvalue()), start)
        if call.operation.startswith("DescribeVpcBlockPublicAccess"):
            return self.reply(call, self.blocked(call), start)
        if call.operation == "ListAccounts":
            return self.list_accounts(call, environ, start)
        changes = {
            "ListBuckets": self.add_bucket_regions,
            "DescribeTrails": self.tell_custom_selectors,
            "GetAccountSummary": self.edit_summary,
            "GetCredentialReport": self.edit_report,
        }
        if change := changes.get(call.operation):
            return self.edit(functools.partial(change, call.account), environ, start)
        if call.operation in ("GetObject", "PutObject"):
            with self.objects:
                return [b"".join(self.app(environ, start))]
        answer: Iterable[bytes] = self.app(environ, start)
        return answer

    def invoke(self, event: dict[str, Any], start: Any) -> Iterable[bytes]:
        try:
            with self.turn:
                answer = json.dumps(self.function(event))
        except Exception as error:
            return self.give(type(error).__name__, str(error), start)
        start("200 OK", [("Content-Length", str(len(answer)))])
        return [answer.encode()]

    def give(self, error: str, message: str, start: Any) -> Iterable[bytes]:
        """What Lambda answers for a function that failed: for Lambda itself all is well."""
        text = json.dumps({"errorType": error, "errorMessage": message}).encode()
        failed = ("X-Amz-Function-Error", "Unhandled")
        start("200 OK", [failed, ("Content-Length", str(len(text)))])
        return [text]

    def blocked(self, call: Call) -> str:
        blocks = own(call.account, self.block_public_access, self.blocks)
        block = blocks.get(call.region, BlockPublicAccess())
        return block.options() if call.operation.endswith("Options") else block.excluded()

    def list_accounts(self, call: Call, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """moto gives an empty list to whoever is not the management account."""
        management, _ = organizations_backends.master_accounts.get(call.account, (call.account, ""))
        known = organizations_backends[management]["aws"]
        if known.org is None:
            return self.refuse(call, "AWSOrganizationsNotInUseException", 400, start)
        if call.account not in (management, *self.administrators):
            return self.refuse(call, "AccessDeniedException", 400, start)
        hidden = {"State", "Status"} - {*self.states}
        accounts = [
            {name: value for name, value in account.describe().items() if name not in hidden}
            for account in known.accounts
        ]
        pages = self.pages(accounts)
        number = int(json.loads(environ["wsgi.input"].getvalue()).get("NextToken", 0))
        more = {"NextToken": str(number + 1)} if number + 1 < len(pages) else {}
        text = json.dumps({"Accounts": pages[number], **more}).encode()
        kind = ("Content-Type", "application/x-amz-json-1.1")
        start("200 OK", [kind, ("Content-Length", str(len(text)))])
        return [text]

    def is_foreign(self, call: Call) -> bool:
        """Whether a bucket is another account's: moto lets everybody read it by its name."""
        bucket = call.text.split(" ", 1)[0].split("/")[1]
        _, owner = s3_backends.bucket_accounts.get(bucket, ("", call.account))
        return owner != call.account and call.operation != "PUT"

    def why_not(self, environ: dict[str, Any]) -> str:
        """The error code if a role may not be assumed: moto makes up any role that is asked
        for, under any name of session."""
        asked = parse_qs(environ["wsgi.input"].getvalue().decode())
        role = re.fullmatch(r"arn:[\w-]+:iam::(\d{12}):role/(.+)", asked["RoleArn"][0])
        name = re.fullmatch(r"[A-Za-z0-9_+=,.@-]{2,64}", asked["RoleSessionName"][0])
        if not role or not name:
            return "ValidationError"
        missing = self.roles is not None and role[2] not in self.roles
        return "AccessDenied" if missing or role[1] in self.closed else ""

    def reply(self, call: Call, content: str, start: Any) -> Iterable[bytes]:
        name = f"{call.operation}Response"
        text = f"<{name}><requestId>1</requestId>{content}</{name}>".encode()
        start("200 OK", [("Content-Type", "text/xml"), ("Content-Length", str(len(text)))])
        return [text]

    def edit(
        self, change: Callable[[str], str], environ: dict[str, Any], start: Any
    ) -> Iterable[bytes]:
        began: list[Any] = []
        text = b"".join(self.app(environ, lambda *args: began.extend(args))).decode()
        if began[0].startswith("200"):
            text = change(text)
        headers = [(key, value) for key, value in began[1] if key.lower() != "content-length"]
        start(began[0], [*headers, ("Content-Length", str(len(text.encode())))])
        return [text.encode()]

    def add_bucket_regions(self, account: str, text: str) -> str:
        known = backends.get_backend("s3")[account]["aws"].buckets

        def add(match: re.Match[str]) -> str:
            return f"{match[0]}<BucketRegion>{known[match[1]].region_name}</BucketRegion>"

        return re.sub(r"<Name>([^<]+)</Name>", add, text)

    def tell_custom_selectors(self, account: str, text: str) -> str:
        answer = json.loads(text)
        for trail in answer["trailList"]:
            known = backends.get_backend("cloudtrail")[account][trail["HomeRegion"]]
            kept = known.trails[trail["Name"]]
            custom = bool(kept.event_selectors or kept.advanced_event_selectors)
            trail["HasCustomEventSelectors"] = custom
        return json.dumps(answer)

    def edit_summary(self, account: str, text: str) -> str:
        for name, value in own(account, self.summary, self.summaries).items():
            text = re.sub(rf"<entry>\s*<key>{name}</key>.*?</entry>", "", text, flags=re.DOTALL)
            entry = f"<entry><key>{name}</key><value>{value}</value></entry>"
            text = text.replace("<SummaryMap>", f"<SummaryMap>{entry}")
        return text

    def edit_report(self, account: str, text: str) -> str:
        match = re.search(r"<Content>(.*?)</Content>", text, re.DOTALL)
        assert match
        report = base64.b64decode(match[1]).decode()
        if root := own(account, self.root, self.roots):
            header, rest = report.split("\n", 1)
            values = ",".join(root.get(name, "N/A") for name in header.split(","))
            report = f"{header}\n{values}\n{rest}"
        content = base64.b64encode(self.report(report).encode()).decode()
        return text.replace(match[1], content)


def own(account: str, default: dict[str, T], others: dict[str, dict[str, T]]) -> dict[str, T]:
    """What is kept for the account: nothing of one account shows in another."""
    return {DEFAULT_ACCOUNT_ID: default, **others}.get(account, {})


class Dispatcher(DomainDispatcherApplication):
    """moto's, which else looks through its folder for the name of the service at every call."""

    def __init__(self) -> None:
        super().__init__(create_backend_app)
        self.known: dict[str | None, Any] = {}

    def get_backend_for_host(self, host: str | None) -> Any:
        if host not in self.known:
            self.known[host] = super().get_backend_for_host(host)
        return self.known[host]


class Remembering:
    """A WSGI application that asks another one once, and then repeats what it said."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.answers: dict[Any, tuple[str, list[Any], bytes]] = {}

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        environ["wsgi.input"].seek(0)
        scope = environ.get("HTTP_AUTHORIZATION", "").partition(",")[0]
        names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_X_AMZ_TARGET")
        key = (*(environ.get(name) for name in names), scope, body)
        if key not in self.answers:
            began: list[Any] = []
            text = b"".join(self.app(environ, lambda *args: began.extend(args)))
            self.answers[key] = (began[0], began[1], text)
        status, headers, text = self.answers[key]
        start(status, headers)
        return [text]


class QuietHandler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing: the calls are recorded by the layer."""


class Cloud:
    """The running server."""

    def __init__(self, url: str, layer: Layer) -> None:
        self.url, self.layer, self.app = url, layer, layer.app
        self.keys: dict[str, Any] = {}  # by account
        self.clients: dict[Any, Any] = {}  # by service, region and keys
        self.over_http = False
        self.holds: Any = None  # what the accounts were filled with, if it is as it was then

    @property
    def environment(self) -> dict[str, str]:
        """What makes boto3 come here. The proxy resolves s3control's host name,
        ACCOUNT.127.0.0.1, which no resolver knows."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "HTTP_PROXY": self.url,
            "NO_PROXY": "",
            "no_proxy": "",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def credentials(self, account: str = DEFAULT_ACCOUNT_ID) -> dict[str, str]:
        """What makes boto3 act in the account, for an environment."""
        if account == DEFAULT_ACCOUNT_ID:
            return {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"}
        if account not in self.keys:
            self.keys[account] = self.backend("iam", account=account).create_temp_access_key()
        key = self.keys[account]
        return {
            "AWS_ACCESS_KEY_ID": key.access_key_id,
            "AWS_SECRET_ACCESS_KEY": key.secret_access_key,
        }

    def client(
        self, service: str, region: str = "us-east-1", account: str = DEFAULT_ACCOUNT_ID
    ) -> Any:
        """A client to fill the account with, made once."""
        keys: Any = {name.lower(): value for name, value in self.credentials(account).items()}
        if (known := (service, region, *keys.values())) not in self.clients:
            client: Any = SESSION.client(service, region, endpoint_url=self.url, **keys)
            client.meta.events.register_last("before-send", self.answer_here)
            self.clients[known] = client
        return self.clients[known]

    def answer_here(self, request: Any, **_: Any) -> AWSResponse | None:
        """The answer to a request that botocore is about to send, without sending it; None if
        it shall be sent."""
        url = urlsplit(request.url)
        faults = any(fault.kind in CONNECTION for fault in self.layer.faults)
        if self.over_http or faults or url.port != urlsplit(self.url).port:
            return None
        body = request.body or b""
        body = body.read() if hasattr(body, "read") else body
        body = body.encode() if isinstance(body, str) else bytes(body)
        began: list[Any] = []
        environ = environ_of(request, url, body)
        answer = b"".join(self.layer(environ, lambda *args: began.extend(args)))
        status, headers = int(began[0].split(" ", 1)[0]), HTTPHeaderDict(began[1])
        raw: Any = HTTPResponse(
            io.BytesIO(answer),
            headers,
            status,
            preload_content=False,
            request_method=request.method,
        )
        return AWSResponse(request.url, status, raw.headers, raw)

    def organize(self, names: dict[str, str]) -> str:
        """Make an organization of accounts with these numbers and names; its ID. The first is
        the management account, DEFAULT_ACCOUNT_ID."""
        known, numbers = self.backend("organizations"), iter(names)
        with patch.object(utils, "make_random_account_id", lambda: next(numbers)):
            made = known.create_organization("us-east-1")
            for number in [*names][1:]:
                known.create_account(AccountName=number, Email=f"{number}@example.com")
        for account in known.accounts:
            account.name = names[account.id]
        return str(made["Organization"]["Id"])

    def set_state(self, account: str, state: str) -> None:
        """What ListAccounts says of an account: SUSPENDED, PENDING_CLOSURE and so on."""
        model = self.backend("organizations").get_account_by_id(account)
        model.state = model.status = state

    def reset(self) -> None:
        self.layer.reset()
        self.keys.clear()
        self.over_http, self.holds = False, None
        self.layer.app = self.app
        moto_api_backend.reset()
        organizations_backends.master_accounts.clear()  # moto goes on to know the members

    def remember(self) -> None:
        """From now on until it is reset nothing changes here: moto is asked everything once."""
        self.layer.app = Remembering(self.app)

    def backend(self, service: str, region: str = "aws", account: str = DEFAULT_ACCOUNT_ID) -> Any:
        get: Any = backends.get_backend
        return get(service)[account][region]


def environ_of(request: Any, url: SplitResult, body: bytes) -> dict[str, Any]:
    """A request of botocore as a server gives it to a WSGI application."""
    headers = {
        name.upper().replace("-", "_"): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in request.headers.items()
    }
    kept = {name: headers.pop(name) for name in ("CONTENT_TYPE",) if name in headers}
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": url.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(url.path, "latin-1"),
        "QUERY_STRING": url.query,
        "RAW_URI": request.url,
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_NAME": url.hostname,
        "SERVER_PORT": str(url.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        **{f"HTTP_{name}": value for name, value in headers.items()},
        **kept,
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": url.netloc,
    }


def set_regions(names: Iterable[str]) -> None:
    RegionsAndZonesBackend.regions = [
        Region(name, f"ec2.{name}.amazonaws.com", "opt-in-not-required") for name in names
    ]


@contextmanager
def running(regions: Iterable[str] = REGIONS) -> Iterator[Cloud]:
    """A fresh AWS with these regions enabled, on a free port of 127.0.0.1."""
    set_regions(regions)
    layer = Layer(Dispatcher())
    server = make_server("127.0.0.1", 0, layer, threaded=True, request_handler=QuietHandler)
    setattr(server, "daemon_threads", True)  # noqa: B010
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Cloud(f"http://127.0.0.1:{server.server_port}", layer)
    finally:
        layer.ended.set()
        server.shutdown()
        server.server_close()


@contextmanager
def executing(cloud: Cloud) -> Iterator[list[float]]:
    """moto executes state machines, also those that CloudFormation made, and StartExecution
    answers when all is done. Nothing waits before it is tried again: the seconds are given."""
    # imported here: its grammar is large, and other tests need none
    from moto.stepfunctions import models
    from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
    from moto.stepfunctions.parser.backend import execution, execution_worker
    from moto.stepfunctions.parser.models import stepfunctions_parser_backends

    def told(**data: Any) -> dict[str, Any]:  # moto gives a datetime, AWS a string
        return {**data, "StartTime": f"{data['StartTime']:%Y-%m-%dT%H:%M:%S.000Z}"}

    waited: list[float] = []
    with (
        patch.dict(default_user_config, stepfunctions={"execute_state_machine": True}),
        patch.dict("os.environ", MOTO_PORT=cloud.url.rpartition(":")[2]),
        patch.object(models, "stepfunctions_backends", stepfunctions_parser_backends),
        patch.object(execution, "ExecutionWorker", execution_worker.SyncExecutionWorker),
        patch.object(execution_worker, "ExecutionData", told),
        patch.object(retrier_decl, "time", SimpleNamespace(sleep=waited.append)),
    ):
        yield waited
