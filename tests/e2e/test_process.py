"""What is said of the guest's command arrives there: environment, user, directory, host name, entrypoint, volumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures import Cocoon

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = ("--cpu", "1", "--memory", "256M", "--storage", "64M", "--nics", "0")
PROOF = r"""
echo "color=$COLOR"; echo "ours=$OURS"; echo "file=$FROM_FILE"; echo "gone=${GONE-unset}"; echo "host=$(hostname)"
echo "where=$(pwd)"; echo "who=$(id -un):$(id -gn)"; echo "page=$(cat /srv/www/index.html)"
echo "conf=$(cat /etc/app/conf)"; echo "inner=$(cat /srv/www/inner/value)"
echo "mode=$(stat -c %a.%u /srv/www/private)"; echo "left=$(ls -A / | grep -c volume)"
awk '$2 ~ "/srv/www|/etc/app" {print "mounted=" $2 " " substr($4, 1, 2)}' /proc/mounts; echo END; sleep 600
"""


def test_all_of_it_arrives(shared_cocoon: Cocoon, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<p>hello")
    (site / "private").touch(mode=0o600)
    (site / "inner").mkdir()
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "value").write_text("over")
    (tmp_path / "conf").write_text("key = 1")
    (tmp_path / "env").write_text("FROM_FILE=it's here\nCOLOR=file\n")
    shared_cocoon.run(
        "run", "-d", "--name", "proof", *SMALL, "-e", "COLOR=flag $x", "-e", "OURS", "-e", "GONE",
        "--env-file", str(tmp_path / "env"), "-w", "/made/for/it", "-u", "guest:extra", "--hostname", "web-1.example",
        "-v", f"{inner}:/srv/www/inner", "-v", f"{site}:/srv/www:ro", "-v", f"{tmp_path}/conf:/etc/app/conf:ro",
        "--entrypoint", "sh", "busybox", "--", "-c", PROOF,
        environment={"OURS": "this shell"},
    )  # fmt: skip
    log = shared_cocoon.wait_for_log("proof", "END")
    lines = log.splitlines()
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    assert facts["color"] == "flag $x" and facts["ours"] == "this shell" and facts["file"] == "it's here"
    assert facts["gone"] == "unset"
    assert facts["host"] == "web-1.example" and facts["where"] == "/made/for/it" and facts["who"] == "guest:extra"
    assert (facts["page"], facts["conf"], facts["inner"]) == ("<p>hello", "key = 1", "over")
    assert facts["mode"] == "600.0"
    assert facts["left"] == "0", "what it took to mount a file is gone"
    assert sorted(line for line in lines if line.startswith("mounted=")) == [
        "mounted=/etc/app/conf ro", "mounted=/srv/www ro", "mounted=/srv/www/inner ro",
    ]  # fmt: skip
    shared_cocoon.run("vm", "stop", "proof")
    shared_cocoon.run("vm", "start", "proof")
    shared_cocoon.wait_for_log("proof", "END")
    assert (site / "index.html").read_text() == "<p>hello"
