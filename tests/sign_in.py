"""What people sign in to: IAM Identity Center, `aws login`, STS, containers, on 127.0.0.1.

botocore's own providers ask it; what it gives are credentials for the cloud of the tests.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

LIFETIME = timedelta(hours=1)


def in_future(lifetime: timedelta = LIFETIME) -> str:
    """A moment from now, as tokens have it."""
    return f"{datetime.now(timezone.utc) + lifetime:%Y-%m-%dT%H:%M:%SZ}"


class Entrance:
    """The server; `asked` is what it was asked, with the parameters; `refuses` are answers that
    it gives in place of its own, by operation or for all (*): a status and a body, or a function
    from the parameters to these."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refuses: dict[str, Any] = {}
        self.lifetime = LIFETIME
        self.url = ""

    @property
    def operations(self) -> list[str]:
        return [name for name, _ in self.asked]

    def credentials(self) -> dict[str, Any]:
        """Credentials as STS and credential_process have them."""
        return {
            "AccessKeyId": self.keys["AWS_ACCESS_KEY_ID"],
            "SecretAccessKey": self.keys["AWS_SECRET_ACCESS_KEY"],
            "SessionToken": "token of the session",
            "Expiration": in_future(self.lifetime),
        }

    def answer(self, operation: str, params: dict[str, Any]) -> tuple[int, str]:
        self.asked.append((operation, params))
        if refusal := self.refuses.get(operation, self.refuses.get("*")):
            status, text = refusal(params) if callable(refusal) else refusal
            return status, text
        own = {name[0].lower() + name[1:]: value for name, value in self.credentials().items()}
        if operation.startswith("AssumeRole"):
            return 200, self.of_sts(operation)
        if operation == "GetRoleCredentials":
            expiration = int((datetime.now(timezone.utc) + self.lifetime).timestamp() * 1000)
            return 200, json.dumps({"roleCredentials": {**own, "expiration": expiration}})
        if operation == "CreateToken":
            renewed = {"accessToken": "new", "expiresIn": 3600, "refreshToken": "next"}
            return 200, json.dumps({**renewed, "tokenType": "Bearer"})
        if operation == "CreateOAuth2Token":
            output = {"expiresIn": 900, "tokenType": "t", "refreshToken": "next"}
            return 200, json.dumps({"accessToken": own, **output})
        known = self.credentials()
        return 200, json.dumps({**known, "Token": known["SessionToken"], "Code": "Success"})

    def of_sts(self, operation: str) -> str:
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in self.credentials().items())
        return (
            f'<{operation}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<{operation}Result><Credentials>{inner}</Credentials></{operation}Result>"
            f"<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></{operation}Response>"
        )


PATHS = {
    "/federation/credentials": "GetRoleCredentials",
    "/token": "CreateToken",
    "/v1/token": "CreateOAuth2Token",
}
INSTANCE = {
    "/latest/api/token": "token of the instance",
    "/latest/meta-data/iam/security-credentials/": "audit",
}


@contextmanager
def entrance(keys: dict[str, str]) -> Iterator[Entrance]:
    server = Entrance(keys)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length).decode()
            params: dict[str, Any] = {name: one[0] for name, one in parse_qs(query).items()}
            if body.startswith("{"):
                params |= json.loads(body)
            else:
                params |= {name: one[0] for name, one in parse_qs(body).items()}
            params["headers"] = dict(self.headers)
            if path in INSTANCE:
                self.reply(200, INSTANCE[path])
                return
            operation = params.get("Action") or PATHS.get(path, path)
            self.reply(*server.answer(operation, params))

        do_POST = do_PUT = do_GET  # noqa: N815

        def reply(self, status: int, text: str) -> None:
            self.send_response(status)
            kind = "text/xml" if text.startswith("<") else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, args=[0.01], daemon=True).start()
        yield server
        http.shutdown()
