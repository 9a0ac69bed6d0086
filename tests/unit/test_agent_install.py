"""guests/shared/agent/install: the agent as a service of whatever init an image has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fixtures import PROJECT

INSTALL = PROJECT / "guests" / "shared" / "agent" / "install"


def install(root: Path) -> subprocess.CompletedProcess[str]:
    program = root.parent / "program"
    program.write_bytes(b"the agent")
    return subprocess.run([str(INSTALL), str(root), str(program)], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("init", "service", "start"),
    [
        (
            "usr/lib/systemd/systemd",
            "etc/systemd/system/cocoon-agent.service",
            "etc/systemd/system/multi-user.target.wants/cocoon-agent.service",
        ),
        ("sbin/openrc-run", "etc/init.d/cocoon-agent", "etc/runlevels/default/cocoon-agent"),
        ("etc/rc2.d/README", "etc/init.d/cocoon-agent", "etc/rc3.d/S05cocoon-agent"),
    ],
)
def test_services(tmp_path: Path, init: str, service: str, start: str) -> None:
    root = tmp_path / "root"
    (root / init).parent.mkdir(parents=True)
    (root / init).touch()
    for _ in range(2):
        assert install(root).returncode == 0
    assert (root / "usr/local/sbin/cocoon-agent").read_bytes() == b"the agent"
    assert os.access(root / "usr/local/sbin/cocoon-agent", os.X_OK)
    assert "/usr/local/sbin/cocoon-agent" in (root / service).read_text()
    ending = root / "usr/lib/systemd/system-shutdown/cocoon-ending"
    assert ending.is_symlink() == ("systemd" in init)
    assert (root / start).is_symlink() and Path(os.readlink(root / start)).name == (root / service).name


def test_an_inittab(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/inittab").write_text("::sysinit:/bin/true\n")
    for _ in range(2):
        assert install(root).returncode == 0
    assert (root / "etc/inittab").read_text() == "::sysinit:/bin/true\n::respawn:/usr/local/sbin/cocoon-agent\n"


def test_an_image_without_an_init(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    done = install(tmp_path / "root")
    assert done.returncode == 1 and "no init that is known" in done.stderr
