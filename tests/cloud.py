"""An AWS on 127.0.0.1: moto's HTTP server behind a layer that moto lacks.

The layer counts calls, delays and throttles them, injects faults, and answers what moto
cannot: VPC block public access, bucket regions, a credential report with a root row.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, unquote

import boto3
from moto import backends
from moto.ec2.models.availability_zones_and_regions import Region, RegionsAndZonesBackend
from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

DEFAULT_ACCOUNT_ID = "123456789012"  # moto's
REGIONS = ("eu-west-1", "us-east-1", "us-west-2")
S3_OPERATIONS = {
    "acl": "GetBucketAcl",
    "policyStatus": "GetBucketPolicyStatus",
    "publicAccessBlock": "GetPublicAccessBlock",
}


@dataclass(frozen=True)
class Call:
    """A request, in AWS's terms; `text` is its path and body, for what it is about."""

    service: str
    operation: str
    region: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.service}:{self.operation}"

    def about(self, resource: str) -> bool:
        """Whether the call names the resource, as a whole word."""
        return re.search(rf"(?<![\w.-]){re.escape(resource)}(?![\w.-])", self.text) is not None


@dataclass
class Fault:
    """What to do to the calls that match: `kind` is an error code, or one of hang, drop,
    truncate, rubbish; `times` limits how often (-1: for good)."""

    kind: str
    service: str = "*"
    operation: str = "*"
    region: str = "*"
    resource: str = ""
    status: int = 400
    times: int = -1
    hits: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self, call: Call) -> bool:
        patterns = ((call.service, self.service), (call.operation, self.operation))
        if not all(fnmatchcase(*pair) for pair in (*patterns, (call.region, self.region))):
            return False
        if self.resource and not call.about(self.resource):
            return False
        with self.lock:
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


# IAM by account, the others by region: calls a second, after a burst.
LIMITS = {"iam": (20, 30), "ec2": (20, 100), "cloudtrail": (10, 10)}
THROTTLING = {
    "iam": "Throttling",
    "ec2": "RequestLimitExceeded",
    "cloudtrail": "ThrottlingException",
}


def parse(environ: dict[str, Any], body: bytes) -> Call:
    scope = re.search(
        r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", "")
    )
    region, service = scope.groups() if scope else ("", "")
    path, query = unquote(environ["PATH_INFO"]), environ.get("QUERY_STRING", "")
    text = f"{path} {unquote(body.decode('latin-1'))}"
    if "HTTP_X_AMZ_TARGET" in environ:
        return Call(service, environ["HTTP_X_AMZ_TARGET"].rpartition(".")[2], region, text)
    if service == "s3" and path.startswith("/v20180820/"):
        return Call("s3control", "GetPublicAccessBlock", region, text)
    if service == "s3":
        if path == "/":
            return Call(service, "ListBuckets", region, text)
        flag = query.partition("&")[0].partition("=")[0]
        operation = S3_OPERATIONS.get(flag, f"{environ['REQUEST_METHOD']} {flag}".strip())
        if environ["REQUEST_METHOD"] != "GET":
            operation = f"{environ['REQUEST_METHOD']} {flag}"
        return Call(service, operation, region, text)
    return Call(service, parse_qs(body.decode("latin-1")).get("Action", ["?"])[0], region, text)


def error_answer(call: Call, code: str) -> tuple[str, str]:
    """An error in the protocol's own form: content type and body."""
    message = f"User is not authorized to perform: {call.name} ({code})"
    if call.service == "cloudtrail":
        return "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message})
    error = f"<Code>{code}</Code><Message>{message}</Message>"
    if call.service == "ec2":
        error = (
            f"<Response><Errors><Error>{error}</Error></Errors><RequestID>1</RequestID></Response>"
        )
    elif call.service == "s3":
        error = f"<Error>{error}<RequestId>1</RequestId></Error>"
    else:
        error = f"<ErrorResponse><Error><Type>Sender</Type>{error}</Error></ErrorResponse>"
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
        self.reset()

    def reset(self) -> None:
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.delay = 0.0
        self.buckets: dict[Any, Bucket] | None = None
        self.throttled = 0
        self.block_public_access: dict[str, BlockPublicAccess] = {}
        self.root: dict[str, str] = {}
        self.summary: dict[str, int] = {}
        self.report: Callable[[str], str] = lambda text: text

    def count(self) -> Counter[str]:
        return Counter(call.name for call in self.calls)

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        environ["wsgi.input"] = io.BytesIO(body)
        call = parse(environ, body)
        with self.lock:
            self.calls.append(call)
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
        key = (call.service, "" if call.service == "iam" else call.region)
        if call.service == "cloudtrail":
            key = (*key, call.operation)  # type: ignore[assignment]
        bucket = self.buckets.setdefault(key, Bucket(*LIMITS[call.service]))
        refused = not bucket.take()
        self.throttled += refused
        return refused

    def refuse(self, call: Call, code: str, status: int, start: Any) -> Iterable[bytes]:
        kind, text = error_answer(call, code)
        start(f"{status} Error", [("Content-Type", kind), ("Content-Length", str(len(text)))])
        return [text.encode()]

    def inject(
        self, fault: Fault, call: Call, environ: dict[str, Any], start: Any
    ) -> Iterable[bytes]:
        if fault.kind == "hang":
            self.ended.wait()
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
        return self.refuse(call, fault.kind, fault.status, start)

    def collect(self, call: Call, environ: dict[str, Any]) -> tuple[str, list[Any], bytes]:
        began: list[Any] = []
        text = b"".join(self.answer(call, environ, lambda *args: began.extend(args)))
        return began[0], began[1], text

    def answer(self, call: Call, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        block = self.block_public_access.get(call.region, BlockPublicAccess())
        if call.operation == "DescribeVpcBlockPublicAccessOptions":
            return self.reply(call, block.options(), start)
        if call.operation == "DescribeVpcBlockPublicAccessExclusions":
            return self.reply(call, block.excluded(), start)
        if call.operation == "ListBuckets":
            return self.edit(self.add_bucket_regions, environ, start)
        if call.operation == "DescribeTrails":
            return self.edit(self.tell_custom_selectors, environ, start)
        if call.operation == "GetAccountSummary" and self.summary:
            return self.edit(self.edit_summary, environ, start)
        if call.operation == "GetCredentialReport":
            return self.edit(self.edit_report, environ, start)
        answer: Iterable[bytes] = self.app(environ, start)
        return answer

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

    def add_bucket_regions(self, text: str) -> str:
        known = backends.get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].buckets

        def add(match: re.Match[str]) -> str:
            return f"{match[0]}<BucketRegion>{known[match[1]].region_name}</BucketRegion>"

        return re.sub(r"<Name>([^<]+)</Name>", add, text)

    def tell_custom_selectors(self, text: str) -> str:
        answer = json.loads(text)
        for trail in answer["trailList"]:
            known = backends.get_backend("cloudtrail")[DEFAULT_ACCOUNT_ID][trail["HomeRegion"]]
            kept = known.trails[trail["Name"]]
            custom = bool(kept.event_selectors or kept.advanced_event_selectors)
            trail["HasCustomEventSelectors"] = custom
        return json.dumps(answer)

    def edit_summary(self, text: str) -> str:
        for name, value in self.summary.items():
            text = re.sub(rf"<entry>\s*<key>{name}</key>.*?</entry>", "", text, flags=re.DOTALL)
            entry = f"<entry><key>{name}</key><value>{value}</value></entry>"
            text = text.replace("<SummaryMap>", f"<SummaryMap>{entry}")
        return text

    def edit_report(self, text: str) -> str:
        match = re.search(r"<Content>(.*?)</Content>", text, re.DOTALL)
        assert match
        report = base64.b64decode(match[1]).decode()
        if self.root:
            header, rest = report.split("\n", 1)
            values = ",".join(self.root.get(name, "N/A") for name in header.split(","))
            report = f"{header}\n{values}\n{rest}"
        content = base64.b64encode(self.report(report).encode()).decode()
        return text.replace(match[1], content)


class QuietHandler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing: the calls are recorded by the layer."""


class Cloud:
    """The running server."""

    def __init__(self, url: str, layer: Layer) -> None:
        self.url, self.layer = url, layer

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

    def client(self, service: str, region: str = "us-east-1") -> Any:
        """A client to fill the account with."""
        keys: Any = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "secret"}
        session: Any = boto3.Session(region_name=region, **keys)
        return session.client(service, endpoint_url=self.url)

    def reset(self) -> None:
        self.layer.reset()
        moto_api_backend.reset()

    def backend(self, service: str, region: str = "aws") -> Any:
        get: Any = backends.get_backend
        return get(service)[DEFAULT_ACCOUNT_ID][region]


def set_regions(names: Iterable[str]) -> None:
    RegionsAndZonesBackend.regions = [
        Region(name, f"ec2.{name}.amazonaws.com", "opt-in-not-required") for name in names
    ]


@contextmanager
def running(regions: Iterable[str] = REGIONS) -> Iterator[Cloud]:
    """A fresh AWS with these regions enabled, on a free port of 127.0.0.1."""
    set_regions(regions)
    layer = Layer(DomainDispatcherApplication(create_backend_app))
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
