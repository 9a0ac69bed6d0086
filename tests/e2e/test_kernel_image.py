"""An image that carries its own kernel and initramfs (the original's guest contract), and a plain Debian."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cocoon.engine.fit_image import OWN_KERNEL_LAYERS
from fixtures import Cocoon, Registry, add_layers
from layer_scene import more_layers

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(1800)
def test_an_image_with_its_own_kernel_boots_it_and_shuts_down_when_asked(
    cocoon: Cocoon, registry: Registry, kernel_image: Path, tmp_path: Path
) -> None:
    # With so many layers that the guest's script would take minutes to find them: some are merged.
    layout = add_layers(kernel_image, tmp_path / "layout", more_layers(30))
    reference = registry.push(layout, "debian-vm:13")
    small = ("--cpu", "2", "--memory", "512M", "--storage", "1G", "--data-disk", "size=16M,name=db,mount=/srv/db")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page").write_text("of the host\n")
    small += ("-v", f"{tmp_path}/site:/srv/www")
    done = cocoon.run("run", "--name", "whole", *small, reference)
    assert f"image {reference} has 31 layers: the lowest 16 are merged, once" in done.stderr
    log = cocoon.wait_for_log("whole", "guest: up", timeout=600)
    assert "guest: host name whole, address 10." in log
    record = cocoon.json("vm", "inspect", "whole")
    assert record["boot"]["kernel"] == ""
    assert [disk["role"] for disk in record["disks"]] == ["layer"] * OWN_KERNEL_LAYERS + ["cow", "data", "volume"]
    assert "boot=cocoon-overlay" in record["kernel_cmdline"]
    assert " cocoon.data=db:/srv/db:ext4,cocoon-volume0:/srv/www:erofs " in record["kernel_cmdline"]
    assert cocoon.run("exec", "whole", "cat", "/srv/www/page").stdout == "of the host\n"
    cocoon.run("vm", "stop", "--timeout", "300", "whole")
    # Its overlay script has mounted the data disk.
    disk = record["disks"][-2]["path"]
    said = subprocess.run(["dumpe2fs", "-h", disk], check=True, capture_output=True, text=True).stdout
    assert re.search(r"^Mount count: +1$", said, re.MULTILINE), said
    # The agent asked systemd: it said so, and the VMM ended by itself.
    log = cocoon.run("vm", "logs", "whole").stdout
    assert "Power-Off" in log or "power" in log.lower()


@pytest.mark.timeout(1200)
def test_a_plain_debian_boots_the_engines_kernel(
    cocoon: Cocoon, registry: Registry, kernel_deb: Path, debian_image: Path
) -> None:
    reference = registry.push(debian_image, "debian:13")
    cocoon.run("kernel", "add", "--name", "debian", str(kernel_deb))
    cocoon.run("run", "--name", "trixie", "--cpu", "1", "--memory", "512M", reference)
    log = cocoon.wait_for_log("trixie", "guest: up", timeout=600)
    assert "Debian GNU/Linux" in log
    assert "guest: host name trixie, address 10." in log
