"""When to try again and when to give up; whom to ask for an image."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from cocoon.config import Config, load_config
from cocoon.errors import APIFailed, ConnectionFailed, Corrupt, Interrupted, InvalidSpec, Timeout
from cocoon.host.retry import Attempts, Patience, is_passing, parse_retry_after
from cocoon.oci.endpoint import find_endpoints, parse_mirrors
from cocoon.oci.reference import parse_reference

QUICK = Patience(tries=4, first_s=0.01, longest_s=0.02, total_s=0.5, asked_s=0.05)


def make_attempts(patience: Patience = QUICK, notes: list[str] | None = None) -> Attempts:
    return Attempts(patience, stop=lambda: None, note=(notes if notes is not None else []).append)


def test_patience_ends() -> None:
    notes: list[str] = []
    attempts = make_attempts(notes=notes)
    for _ in range(3):
        attempts.failed(ConnectionFailed("broke"))
    with pytest.raises(ConnectionFailed, match=r"broke \(tried 4 times in 0 s\)"):
        attempts.failed(ConnectionFailed("broke"))
    assert len(notes) == 3 and notes[0].startswith("broke; trying again in 0.0 s")


def test_progress_makes_it_whole_again() -> None:
    attempts = make_attempts()
    for _ in range(10):
        attempts.failed(Timeout("slow"))
        attempts.progressed()


def test_a_first_failure_that_is_the_last_is_told_as_it_is() -> None:
    with pytest.raises(ConnectionFailed, match=r"broke\Z"):
        make_attempts().failed(ConnectionFailed("broke"), tries=1)


def test_the_whole_has_an_end_too() -> None:
    attempts = make_attempts(Patience(tries=1000, first_s=0.05, longest_s=0.05, total_s=0.2))
    with pytest.raises(Timeout):
        while True:
            attempts.failed(Timeout("slow"))


def test_what_a_server_asks_for_is_bounded() -> None:
    begun = time.monotonic()
    make_attempts().failed(APIFailed("busy"), asked_s=0.04)
    assert time.monotonic() - begun >= 0.04
    with pytest.raises(APIFailed) as caught:
        make_attempts().failed(APIFailed("busy"), asked_s=60)
    assert caught.value.hint == "it asks us to come back in 60 s"


def test_a_pause_can_be_stopped() -> None:
    def stop() -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        Attempts(Patience(), stop=stop, note=lambda words: None).failed(Timeout("slow"))


def test_what_passes() -> None:
    assert is_passing(ConnectionFailed("x")) and is_passing(Timeout("x"))
    assert not is_passing(APIFailed("x")) and not is_passing(Corrupt("x"))


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("120", 120), ("", None), ("-1", None), ("soon", None)])
def test_retry_after(text: str, seconds: float | None) -> None:
    assert parse_retry_after(text) == seconds


def test_retry_after_a_date() -> None:
    asked = parse_retry_after(formatdate(time.time() + 100, usegmt=True))
    assert asked is not None and 95 < asked <= 100
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def hosts(config: Config, name: str) -> list[str]:
    return [f"{e.scheme}://{e.host}/{e.prefix}" for e in find_endpoints(parse_reference(name), config)]


def test_endpoints() -> None:
    config = Config(
        mirrors="docker.io=https://m.example,docker.io=http://10.0.0.1:5000/hub/x/ r.example=https://n.example"
    )
    assert hosts(config, "alpine") == [
        "https://m.example/",
        "http://10.0.0.1:5000/hub/x/",
        "https://registry-1.docker.io/",
    ]
    assert hosts(config, "r.example/a") == ["https://n.example/", "https://r.example/"]
    assert hosts(config, "other.example/a") == ["https://other.example/"]
    assert hosts(config, "localhost:5000/a") == ["://localhost:5000/"]
    careless = config.replace(insecure_registries="r.example, n.example")
    assert [e.unverified for e in find_endpoints(parse_reference("r.example/a"), careless)] == [True, True]


@pytest.mark.parametrize(
    "text",
    ["docker.io", "docker.io=", "=https://x", "docker.io=ftp://x", "docker.io=https://u:p@x", "docker.io=https://x?y",
     "docker.io=https://x/../y", "docker.io=https://[::1", "docker.io=https://x:99999", "d.io=http://a " * 17],
)  # fmt: skip
def test_mirrors_that_make_no_sense(text: str) -> None:
    with pytest.raises(InvalidSpec, match="mirror"):
        for registry in ("docker.io", "d.io"):
            find_endpoints(parse_reference(f"{registry}/x"), Config(mirrors=text))


def test_mirrors_in_a_file(tmp_path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'insecure_registries = ["a:1", "b"]\n[mirrors]\n"docker.io" = ["https://x", "https://y"]\nz = "http://w"\n'
    )
    config = load_config(str(path), {}, {})
    assert parse_mirrors(config.mirrors) == {"docker.io": ("https://x", "https://y"), "z": ("http://w",)}
    assert config.insecure_registries == "a:1,b"
