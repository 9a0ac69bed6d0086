"""Logins: a real registry with a password file and with TLS, tokens, credential helpers, and going without."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

import fixtures
from cocoon.engine import image as verbs
from cocoon.errors import APIFailed
from cocoon.oci.credentials import Credentials, config_files, find_credentials
from cocoon.oci.endpoint import is_loopback
from cocoon.oci.login import parse_challenges
from image_scene import FakeImage, Layer, LyingRegistry, lying_registry, make_oci_layout, make_tar, make_world, send

LAYER = Layer(make_tar([("./", b""), ("f", b"content")]))
USER = base64.b64encode(b"me:secret").decode()
# bcrypt of "secret": Debian's registry reads nothing else, and htpasswd may not be installed.
HTPASSWD = "me:$2b$05$CCCCCCCCCCCCCCCCCCCCC.pIKrLVkBX9/OvQMSygY1pWEVn72t6na\n"


class StrictRegistry(fixtures.Registry):
    """A registry with more settings."""

    def __init__(self, directory: Path, **settings: object) -> None:
        super().__init__(directory)
        self.settings = settings

    def _start_once(self) -> None:
        super()._start_once()
        self.stop()
        path = self.directory / "config.json"
        config = json.loads(path.read_text())
        http = self.settings.pop("http", {})
        config["http"].update(http)
        self.settings["http"] = http
        config.update({key: item for key, item in self.settings.items() if key != "http"})
        path.write_text(json.dumps(config))
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [fixtures._registry_program(), "serve", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=fixtures.clean_environment(OTEL_TRACES_EXPORTER="none"),
            )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any credentials."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / ".docker").mkdir()
    return tmp_path


def log_in(home: Path, host: str, **entry: str) -> None:
    (home / ".docker/config.json").write_text(json.dumps({"auths": {host: entry or {"auth": USER}}}))


def test_a_password(world, home: Path, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}}
    registry = StrictRegistry(tmp_path / "registry", auth=auth)
    registry.start()
    try:
        layout = make_oci_layout(tmp_path / "l", [LAYER])
        reference = f"{registry.host}/team/app:1"
        subprocess.run(
            ["skopeo", "copy", "-q", "--dest-tls-verify=false", "--dest-creds=me:secret", f"oci:{layout}",
             f"docker://{reference}"], check=True, capture_output=True,
        )  # fmt: skip
        with pytest.raises(APIFailed, match="wants a login") as caught:
            verbs.pull_image(world, reference)
        assert f"docker login {registry.host}" in caught.value.hint
        log_in(home, registry.host, auth=base64.b64encode(b"me:wrong").decode())
        with pytest.raises(APIFailed, match="denies access"):
            verbs.pull_image(world, reference)
        log_in(home, registry.host)
        verbs.pull_image(world, reference)
    finally:
        registry.stop()


def test_tls_with_an_authority_of_ones_own(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    registry = StrictRegistry(tmp_path / "registry", http={"tls": {"certificate": str(certificate), "key": str(key)}})
    registry.start()
    try:
        layout = make_oci_layout(tmp_path / "l", [LAYER])
        reference = registry.push(layout, "team/app:1")
        with pytest.raises(APIFailed, match="certificate of .* is not trusted") as caught:
            verbs.pull_image(world, reference)
        assert "certs.d" in caught.value.hint
        careless = make_world(tmp_path / "careless", insecure_registries=f"other:1, {registry.host}")
        verbs.pull_image(careless, reference)
        trusted = tmp_path / "certs.d" / registry.host
        trusted.mkdir(parents=True)
        (trusted / "ca.crt").write_bytes(certificate.read_bytes())
        monkeypatch.setattr("cocoon.host.http.CERTIFICATE_DIRS", (str(tmp_path / "certs.d"),))
        verbs.pull_image(world, reference)
    finally:
        registry.stop()


class TokenServer:
    """The realm of a LyingRegistry that wants tokens."""

    def __init__(self, registry: LyingRegistry, *, user: str = "") -> None:
        self.registry = registry
        self.user = user
        self.asked: list[str] = []
        registry.before = self.look

    def look(self, handler) -> bool:
        if handler.path.startswith("/token"):
            body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0)).decode()
            self.asked.append(f"{handler.command} {handler.path} {body} {handler.headers.get('Authorization', '')}")
            refused = self.user and self.user not in self.asked[-1]
            send(handler, b"{}" if refused else b'{"token": "good"}', status=401 if refused else 200)
            return True
        if handler.path != "/v2/" and handler.headers.get("Authorization") != "Bearer good":
            realm = f'Bearer realm="http://{self.registry.host}/token",service="s",scope="other:thing"'
            send(handler, b"{}", status=401, WWW_Authenticate=realm)
            return True
        return False


def test_tokens(world, home: Path) -> None:
    with lying_registry() as registry:
        reference = registry.add("x", FakeImage([LAYER]))
        server = TokenServer(registry)
        verbs.pull_image(world, reference)
        assert server.asked == ["GET /token?scope=repository%3Ar%3Apull&service=s  "]
        log_in(home, registry.host)
        server.asked.clear()
        server.user = USER
        verbs.pull_image(world, reference)
        assert server.asked == [f"GET /token?scope=repository%3Ar%3Apull&service=s  Basic {USER}"]
        log_in(home, registry.host, identitytoken="refresh me")
        server.asked.clear()
        server.user = "refresh_token=refresh+me"
        verbs.pull_image(world, reference)
        assert server.asked[0].startswith("POST /token ") and "grant_type=refresh_token" in server.asked[0]


def test_a_stale_login_does_not_keep_from_public_images(world, home: Path) -> None:
    with lying_registry() as registry:
        reference = registry.add("x", FakeImage([LAYER]))
        server = TokenServer(registry)
        log_in(home, registry.host)

        def refuse_logins(handler) -> bool:
            if handler.path.startswith("/token") and "Authorization" in handler.headers:
                send(handler, b"{}", status=401)
                return True
            return server.look(handler)

        registry.before = refuse_logins
        verbs.pull_image(world, reference)


def test_a_login_that_may_not_see_a_public_image(world, home: Path) -> None:
    """The realm gives a token to whoever logs in, but the registry refuses it; the anonymous one is good."""
    with lying_registry() as registry:
        reference = registry.add("x", FakeImage([LAYER]))
        log_in(home, registry.host)

        def look(handler) -> bool:
            if handler.path.startswith("/token"):
                named = "Authorization" in handler.headers
                send(handler, b'{"token": "narrow"}' if named else b'{"token": "good"}')
                return True
            given = handler.headers.get("Authorization")
            if handler.path == "/v2/" or given == "Bearer good":
                return False
            realm = f'Bearer realm="http://{registry.host}/token"'
            send(handler, b"{}", status=403 if given else 401, WWW_Authenticate=realm)
            return True

        registry.before = look
        verbs.pull_image(world, reference)


def test_a_realm_elsewhere_without_tls(world, home: Path) -> None:
    with lying_registry() as registry:
        reference = registry.add("x", FakeImage([LAYER]))
        log_in(home, registry.host)

        def send_away(handler) -> bool:
            if handler.path == "/v2/":
                return False
            send(handler, b"{}", status=401, WWW_Authenticate='Bearer realm="http://example.invalid/token"')
            return True

        registry.before = send_away
        with pytest.raises(APIFailed, match="without TLS"):
            verbs.pull_image(world, reference)


# Files and helpers


def find(home: Path, registry: str, said: list[str] | None = None) -> Credentials | None:
    return find_credentials(registry, dict(os.environ), (said if said is not None else []).append)


def test_where_credentials_are_looked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(home, "r.example") is None
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/a")
    monkeypatch.setenv("DOCKER_CONFIG", "/b")
    assert config_files(dict(os.environ))[:2] == ["/a", "/b/config.json"]


@pytest.mark.parametrize("key", ["r.example", "https://r.example", "https://r.example/v1/"])
def test_keys_of_entries(home: Path, key: str) -> None:
    log_in(home, key)
    assert find(home, "r.example") == Credentials(user="me", password="secret")
    assert find(home, "other.example") is None


def test_docker_hub_has_a_key_of_its_own(home: Path) -> None:
    log_in(home, "https://index.docker.io/v1/")
    assert find(home, "docker.io") == Credentials(user="me", password="secret")


def test_helpers(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread -r host\ncase "$1 $host" in\n"get r.example") '
        'echo \'{"ServerURL":"r","Username":"me","Secret":"secret"}\';;\n'
        '"get t.example") echo \'{"Username":"<token>","Secret":"t"}\';;\n'
        '*) echo "credentials not found in native keychain"; exit 1;;\nesac\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for config in ({"credsStore": "test"}, {"credHelpers": {"r.example": "test", "t.example": "test"}}):
        (home / ".docker/config.json").write_text(json.dumps(config))
        assert find(home, "r.example") == Credentials(user="me", password="secret")
        assert find(home, "t.example") == Credentials(identity_token="t")
        assert find(home, "u.example") is None


def test_what_does_not_work_is_said_and_passed_over(home: Path) -> None:
    for content in ("nonsense", "[]", '{"credsStore": "missing"}', '{"credsStore": "../../bin/sh"}'):
        (home / ".docker/config.json").write_text(content)
        said: list[str] = []
        assert find(home, "r.example", said) is None
        assert len(said) == 1 and "not used" in said[0], content


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Credentials(user="me", password="secret"))


def test_challenges() -> None:
    header = 'Bearer realm="https://a/t",service="x y",scope="repository:a:pull,push", Basic realm="r"'
    assert parse_challenges(header) == {
        "bearer": {"realm": "https://a/t", "service": "x y", "scope": "repository:a:pull,push"},
        "basic": {"realm": "r"},
    }
    assert parse_challenges("") == {} and parse_challenges('Bearer realm="') == {"bearer": {}}


def test_loopback() -> None:
    for host in ("localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:80", "[::1]:5000"):
        assert is_loopback(host)
    for host in ("localhost.example", "127.0.0.1.example", "10.0.0.1", "example:5000"):
        assert not is_loopback(host)
