"""CNI networks for tests: conflists, the distribution's plugins, and plugins of our own that are shell scripts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from cocoon.config import Config
from cocoon.host import netlink
from cocoon.plan.world import World
from cocoon.store.store import Store
from fixtures import Cocoon

SYSTEM_PLUGINS = "/usr/lib/cni"
SMALL = ("--cpu", "1", "--memory", "256M", "--storage", "64M")

# A plugin that hands on what the one before it made.
HAND_ON = """cat > "$0.in"
[ "$CNI_COMMAND" = ADD ] || exit ${DEL_STATUS:-0}
exec python3 -c "import json, sys; print(json.dumps(json.load(open(sys.argv[1]))['prevResult']))" "$0.in" """

# A plugin of the latest version that makes an interface with an address, and notes what it is asked with what words.
# $STATUS is what its STATUS ends with.
NOTE = """request=$(cat); echo "$CNI_COMMAND $request" >> "$0.log"
number=$(echo "$CNI_CONTAINERID" | cksum | cut -d " " -f 1)
link() { ip -n "${CNI_NETNS##*/}" link "$@"; }
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}';;
STATUS) [ -z "$STATUS" ] || { echo "{\\"code\\": $STATUS, \\"msg\\": \\"no more lines\\"}"; exit 1; };;
ADD) link add "$CNI_IFNAME" type veth peer name "x$CNI_IFNAME" && link set "$CNI_IFNAME" up
     echo '{"cniVersion": "1.1.0", "interfaces": [{"name": "'$CNI_IFNAME'", "sandbox": "'$CNI_NETNS'"}],
            "ips": [{"interface": 0, "address": "10.77.'$((number / 250 % 250)).$((2 + number % 250))'/16"}]}';;
DEL) [ ! -e "$CNI_NETNS" ] || link delete "$CNI_IFNAME" || true;;
GC) exit ${GC_STATUS:-0};;
esac"""


class Office:
    """A directory of conflists, one of plugins, and the leases of host-local."""

    def __init__(self, directory: Path, *, system: str = SYSTEM_PLUGINS) -> None:
        self.conf, self.bin, self.leases = directory / "net.d", directory / "bin", directory / "leases"
        self.cache = directory / "cache"
        for path in (self.conf, self.bin):
            path.mkdir()
        self.environment = {
            "COCOON_CNI_CONF_DIR": str(self.conf),
            "COCOON_CNI_BIN_DIR": f"{self.bin}:{system}",
            "COCOON_CNI_CACHE_DIR": str(self.cache),
        }

    def world(self, root: Path) -> World:
        """An engine's world with these networks, and a store of its own."""
        settings = {name.removeprefix("COCOON_").lower(): item for name, item in self.environment.items()}
        config = Config(root_dir=str(root), **settings)
        return World(store=Store.open(config.paths(), create=True), config=config)

    def describe(self, name: str, *more: dict, file: str = "") -> None:
        """A network of a bridge with host-local, and `more` plugins."""
        bridge = {
            "type": "bridge", "bridge": f"cni-{name[:8]}", "isGateway": True, "ipMasq": True,
            "capabilities": {"mac": True},
            "ipam": self.host_local("10.99.0.0/29", "fd99::/64"),
        }  # fmt: skip
        self.write({"cniVersion": "1.0.0", "name": name, "plugins": [bridge, *more]}, file=file)

    def host_local(self, *subnets: str) -> dict:
        """The part of a plugin that has host-local give it addresses."""
        ranges = [[{"subnet": subnet}] for subnet in subnets]
        return {
            "type": "host-local", "dataDir": str(self.leases), "routes": [{"dst": "0.0.0.0/0"}], "ranges": ranges,
        }  # fmt: skip

    def write(self, plain: dict, *, file: str = "") -> None:
        """A conflist as it is."""
        (self.conf / f"{file or plain['name']}.conflist").write_text(json.dumps(plain))

    def plugin(self, name: str, script: str) -> None:
        """A plugin that is a shell script; `$CNI_COMMAND` says what is asked."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def asked(self, name: str) -> list[tuple[str, dict]]:
        """What a plugin that notes was asked: commands and their configuration."""
        path = self.bin / f"{name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.split(" ", 1)[0], json.loads(line.split(" ", 1)[1])) for line in lines]

    def taken(self) -> list[str]:
        """The IPv4 addresses that host-local has given away."""
        return sorted(str(path.name) for path in self.leases.glob("*/10.*"))


def create(cocoon: Cocoon, name: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`cocoon vm create` of a small VM."""
    return cocoon.run("vm", "create", "--name", name, *SMALL, *options, "busybox", check=check)


def debts(cocoon: Cocoon) -> str:
    """How many DELs are owed."""
    query = "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM debt').fetchone()[0])"
    done = subprocess.run(["python3", "-c", query, str(cocoon.root / "state.db")], capture_output=True, text=True)
    return done.stdout.strip()


def sweep_bridges() -> None:
    """Plugins leave their bridges, and take none with another subnet."""
    for link in netlink.links():
        if link.name.startswith("cni-"):
            netlink.delete_link(link.name)
