"""cocoon-init's parsers, on the host under ASan and UBSan, with what Python renders and with anything else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_scene import build_driver
from cocoon.guest.bootconfig import BootConfig, GuestData, GuestNIC, render_boot_config

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def driver() -> str:
    return build_driver()


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr.decode(errors="replace")  # not a sanitizer's abort
    assert b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr, done.stderr.decode(errors="replace")
    return done


text = st.text(st.characters(blacklist_characters="\0\n", blacklist_categories=["Cs"]), max_size=60)
filled = st.text("abcdefghij0123456789-", min_size=1, max_size=20)


@few
@given(
    st.builds(
        BootConfig,
        layers=st.lists(filled, min_size=1, max_size=256).map(tuple),
        cow=filled,
        hostname=filled,
        arguments=st.lists(text, max_size=20).map(tuple),
        environment=st.lists(text, max_size=20).map(tuple),
        user=filled,
        working_dir=filled,
        stop_signal=st.sampled_from(["", "TERM", "SIGRTMIN+5", "64"]),
        nics=st.lists(
            st.builds(
                GuestNIC,
                mac=filled,
                address=filled,
                prefix=st.integers(0, 32),
                gateway=filled,
                mtu=st.integers(68, 65535),
                address6=filled,
                prefix6=st.integers(0, 128),
                gateway6=filled,
            ),
            max_size=32,
        ).map(tuple),
        dns=st.lists(filled, max_size=8).map(tuple),
        data=st.lists(st.builds(GuestData, disk=filled, fstype=filled, mount=text.map("/{}".format)), max_size=64).map(
            tuple
        ),
    )
)
def test_both_sides_understand_each_other(driver, tmp_path, config):
    path = tmp_path / "config"
    path.write_bytes(render_boot_config(config))
    done = run(driver, "config", str(path))
    assert done.returncode == 0, done.stderr
    expected = [f"layer {name}" for name in config.layers] + [f"cow {config.cow}", f"hostname {config.hostname}"]
    expected += [f"arg {word}" for word in config.arguments] + [f"env {word}" for word in config.environment]
    expected += [f"dns {word}" for word in config.dns] + [f"user {config.user}", f"cwd {config.working_dir}"]
    expected += [
        f"nic {n.mac} {n.mtu} {n.address} {n.prefix} {n.gateway} {n.address6} {n.prefix6} {n.gateway6}"
        for n in config.nics
    ]
    expected += [f"data {d.disk} {d.fstype} {d.mount}" for d in config.data]
    assert done.stdout.decode().split("\n")[:-3] == expected


def whole(records: bytes, length: int | None = None) -> bytes:
    return b"cocoon-config 1 %d\n" % (len(records) if length is None else length) + records


GOOD = b"layer=a\0cow=b\0hostname=c\0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(4096),
        b"cocoon-config 1 ",
        b"cocoon-config 2 5\nlayer",
        b"cocoon-config 1 x\n",
        b"cocoon-config 1 -1\n",
        b"cocoon-config 1 99999999999999999999\n",
        whole(GOOD, len(GOOD) + 1),
        whole(GOOD[:-1]),
        whole(GOOD + b"noequals\0"),
        whole(GOOD + b"unknown=1\0"),
        whole(GOOD + b"cow=twice\0"),
        whole(GOOD + b"\0"),
        whole(GOOD + b"nic=\0"),
        whole(GOOD + b"nic=m,1500,1.2.3.4,,,\0"),
        whole(GOOD + b"nic=m,1500,1.2.3.4/33,,,\0"),
        whole(GOOD + b"nic=m,67,1.2.3.4/24,,,\0"),
        whole(GOOD + b"nic=m,1500,,,fd::1/129,\0"),
        whole(GOOD + b"nic=m,1500,1.2.3.4/24,,\0"),
        whole(GOOD + b"nic=m,1500,1.2.3.4/24,,,,more\0"),
        whole(GOOD + b"stop_signal=0\0"),
        whole(GOOD + b"stop_signal=65\0"),
        whole(GOOD + b"init=no\0"),
        whole(GOOD + b"layer=x\0" * 256),
        whole(GOOD + b"dns=x\0" * 9),
        whole(GOOD + b"data=\0"),
        whole(GOOD + b"data=db\0"),
        whole(GOOD + b"data=db,ext4\0"),
        whole(GOOD + b"data=db,ext4,relative\0"),
        whole(GOOD + b"data=db,ext4,/x\0" * 65),
        whole(b"layer=a\0cow=b\0"),
        whole(b""),
    ],
)
def test_what_is_refused(driver, tmp_path, content):
    path = tmp_path / "config"
    path.write_bytes(content)
    done = run(driver, "config", str(path))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1


def test_as_large_as_it_gets(driver, tmp_path):
    path = tmp_path / "config"
    space = 1024 * 1024 - len(whole(GOOD)) - 20
    path.write_bytes(whole(GOOD + b"env=\0" * (space // 5)))
    assert run(driver, "config", str(path)).stdout.count(b"env ") == space // 5


@few
@given(st.binary(max_size=300), st.integers(0, 30), st.booleans())
def test_any_bytes(driver, tmp_path, noise, at, framed):
    path = tmp_path / "config"
    path.write_bytes(whole(noise + b"\0") if framed else whole(GOOD)[:at] + noise + whole(GOOD)[at:])
    run(driver, "config", str(path))


PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n1234:x:77:78::/n:/bin/sh\nnohome:x:5:5:::\n"
)
GROUP = "root:x:0:\nbob:x:1001:\ndisk:x:6:root,bob\naudio:x:29:bob\n2000:x:99:\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(PASSWD)
    (tmp_path / "etc" / "group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("user", "account"),
    [
        ("", "0 0 /root 6"),
        ("root", "0 0 /root 6"),
        ("bob", "1000 1001 /home/bob 6 29"),
        ("1000", "1000 1001 /home/bob 6 29"),
        ("bob:disk", "1000 6 /home/bob"),
        ("bob:29", "1000 29 /home/bob"),
        ("bob:4000", "1000 4000 /home/bob"),
        ("4242", "4242 0 /"),
        ("4242:77", "4242 77 /"),
        ("1234", "77 78 /n"),
        ("bob:2000", "1000 99 /home/bob"),
        (":disk", "0 6 /root"),
        ("bob:", "1000 1001 /home/bob 6 29"),
        ("nohome", "5 5 /"),
    ],
)
def test_accounts(driver, root, user, account):
    assert run(driver, "account", str(root), user).stdout.decode() == account + "\n"


@pytest.mark.parametrize(
    "user", ["nobody", "bob:nogroup", "-1", "4294967295", "99999999999999999999", " ", "bob :disk"]
)
def test_accounts_that_are_refused(driver, root, user):
    assert run(driver, "account", str(root), user).returncode == 1


def test_an_image_without_passwd(driver, tmp_path):
    assert run(driver, "account", str(tmp_path), "0").stdout == b"0 0 /\n"
    assert run(driver, "account", str(tmp_path), "bob").returncode == 1


@few
@given(st.binary(max_size=400), st.binary(max_size=400), text)
def test_any_passwd(driver, tmp_path, passwd, group, user):
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc" / "passwd").write_bytes(passwd)
    (tmp_path / "etc" / "group").write_bytes(group)
    run(driver, "account", str(tmp_path), user)
