"""What tests of the whole engine need: built once per machine, kept under the cache directory, safe with xdist."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import own_netns

PROJECT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("COCOON_TEST_CACHE", "/var/cache/cocoon-tests"))
BUILD_TIMEOUT_S = 1500
UNUSED_S = 3 * 24 * 3600


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment without any setting of cocoon's, and with `changes`."""
    kept = {key: item for key, item in os.environ.items() if not key.startswith("COCOON_")}
    return {**kept, **changes}


def build_once(name: str, inputs: list[Path], command: list[str]) -> Path:
    """`CACHE/<name>-<hash of inputs>`, made by `command` with that path as its last argument if it is not there.

    One process builds, the others wait. What no checkout has asked for in three days is removed by the next build.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for path in sorted(inputs):
        digest.update(path.read_bytes())
    target = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _remove_unused()
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # Of a build that was killed.
            done = subprocess.run(
                [*command, str(partial)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=BUILD_TIMEOUT_S,
                preexec_fn=own_netns.outside(),
                pass_fds=(lock.fileno(),),  # Should we be killed, nobody else begins before it has ended.
            )
            if done.returncode:
                raise RuntimeError(f"{command} failed: {done.stderr.decode(errors='replace')[-2000:]}")
            partial.rename(target)
        os.utime(target)
    return target


def _remove_unused() -> None:
    oldest = time.time() - UNUSED_S
    for path in CACHE.iterdir():
        if re.fullmatch(r".+-[0-9a-f]{16}(\.partial.*)?", path.name) and path.stat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True)


def build_recipe(name: str) -> Path:
    """What `cocoon image build` makes of the recipe `name`, as an OCI image layout."""
    from cocoon.images.recipe import find_recipe

    recipe = find_recipe(name)
    guests, tools = PROJECT / "guests", PROJECT / "tests" / "guests"
    trees = [guests / name, *map(Path, recipe.files)]
    inputs = {path for tree in trees for path in tree.rglob("*") if path.is_file()}
    inputs |= {Path(script) for script in recipe.scripts} | {guests / "shared" / f"build-{recipe.distribution}"}
    inputs |= {tools / "recipe_layout.py"}
    if recipe.agent:
        inputs |= {path for path in (guests / "shared" / "agent").rglob("*") if path.is_file()}
        inputs |= {path for path in (PROJECT / "native" / "guest").iterdir() if path.suffix in (".c", ".h")}
    return build_once(f"recipe-{name}", list(inputs), [sys.executable, str(tools / "recipe_layout.py"), name])


def build_busybox() -> Path:
    """A tiny OCI image layout of three layers, with whiteouts."""
    tools = PROJECT / "tests" / "guests"
    inputs = [tools / "busybox-layers", tools / "oci_layout.py"]
    return build_once("guest-busybox", inputs, [str(tools / "busybox-layers")])


def build_cloud_disk() -> Path:
    """A Debian cloud image: a qcow2 that boots by UEFI and is set up by cloud-init."""
    cloud = PROJECT / "tests" / "guests" / "cloud"
    return build_once("guest-cloud", [path for path in cloud.rglob("*") if path.is_file()], [str(cloud / "build")])


def add_layers(source: Path, target: Path, tars: list[bytes]) -> Path:
    """The layout `target`: the one image of the layout `source` with `tars` as layers on top of its own."""
    shutil.copytree(source, target)
    blobs = target / "blobs" / "sha256"

    def put(data: bytes, like: dict) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {**like, "digest": f"sha256:{digest}", "size": len(data)}

    index = json.loads((target / "index.json").read_text())
    (entry,) = index["manifests"]
    manifest = json.loads((blobs / entry["digest"][7:]).read_text())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
    for tar in tars:
        manifest["layers"].append(put(tar, {"mediaType": "application/vnd.oci.image.layer.v1.tar"}))
        config["rootfs"]["diff_ids"].append(manifest["layers"][-1]["digest"])
    manifest["config"] = put(json.dumps(config).encode(), manifest["config"])
    index["manifests"] = [put(json.dumps(manifest).encode(), entry)]
    (target / "index.json").write_text(json.dumps(index))
    return target


def fetch_kernel_deb() -> Path:
    """A Debian cloud kernel package of this machine's architecture."""
    fetch = PROJECT / "setup" / "fetch-debian"
    inputs = [fetch, fetch.with_name("packages.sh")]
    directory = build_once("kernel", inputs, ["bash", "-c", '"$0" "$1" kernel', str(fetch)])
    return next(directory.glob("linux-image-*.deb"))


_FETCH_OTHER = r"""
. /etc/os-release; arch=$(dpkg --print-architecture)
suite=trixie; if [ "$VERSION_CODENAME" = trixie ]; then suite=bookworm; fi
export directory=$0 package=linux-image-cloud-$arch; mkdir -p "$0"
hook='set -e; export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG; cd "$directory"
real=$(apt-cache depends "$package" | sed -n "s/^ *Depends: //p" | head -n 1)
apt-get -qq -o APT::Sandbox::User=root download "$real"'
mmdebstrap --quiet --architectures="$arch" --variant=custom --format=null --customize-hook="$hook" "$suite" -
"""


def fetch_other_kernel_deb() -> Path:
    """The cloud kernel of the Debian release (12 or 13) that `fetch_kernel_deb`'s is not of."""
    return next(build_once("other-kernel", [], ["bash", "-euc", _FETCH_OTHER]).glob("*.deb"))


def vm_cgroups() -> list[Path]:
    """The control groups of VMs in all hierarchies, while other tests make and remove theirs."""
    walk = os.walk("/sys/fs/cgroup")
    return [Path(root, name) for root, names, _ in walk if os.path.basename(root) == "cocoon" for name in names]


class Cocoon:
    """Runs the command line as a user would, in a root directory of its own.

    Every VM that is left is removed by `close`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = clean_environment()

    def command(self, *arguments: str) -> list[str]:
        """The argument list that runs `cocoon ARGUMENTS`."""
        start = "import sys; from cocoon.cli.main import run_process; sys.exit(run_process())"
        return [sys.executable, "-c", start, "--root-dir", str(self.root), *arguments]

    def run(
        self,
        *arguments: str,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 400,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs to its end; with `check`, a status other than 0 raises with what the command printed."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**self.environment, **(environment or {})},
        )
        if check and done.returncode:
            raise AssertionError(f"cocoon {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def json(self, *arguments: str, timeout: float = 400):
        """What the command prints with `--output json` (`inspect` always prints JSON)."""
        words = arguments if "inspect" in arguments else (*arguments, "--output", "json")
        return json.loads(self.run(*words, timeout=timeout).stdout)

    def start(self, *arguments: str, **options) -> subprocess.Popen[str]:
        """Starts the command with pipes and does not wait for it."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        environment = {**self.environment, **options.pop("env", {})}
        return subprocess.Popen(self.command(*arguments), text=True, env=environment, **options)

    def wait_for_log(self, vm: str, text: str, *, timeout: float = 240) -> str:
        """The console log of `vm` as soon as it contains `text`."""
        deadline = time.monotonic() + timeout
        log = ""
        while time.monotonic() < deadline:
            log = self.run("vm", "logs", vm).stdout
            if text in log:
                return log
            time.sleep(0.25)
        raise AssertionError(f"{text!r} is not on the console of {vm} after {timeout} s:\n{log}")

    def wait_for_state(self, vm: str, state: str, *, timeout: float = 120) -> dict:
        """What `vm inspect` says as soon as the VM is in `state`."""
        deadline = time.monotonic() + timeout
        record: dict = {}
        while time.monotonic() < deadline:
            record = self.json("vm", "inspect", vm)
            if record["state"] == state:
                return record
            time.sleep(0.2)
        raise AssertionError(f"{vm} is {record.get('state')}, not {state}, after {timeout} s")

    def remove_all_vms(self) -> None:
        """Removes every VM by force."""
        if not (self.root / "state.db").exists():
            return
        for vm in self.json("vm", "list"):
            self.run("vm", "rm", "--force", vm["id"])

    def close(self) -> None:
        """Removes every VM and the root directory; raises when something cannot be removed."""
        self.remove_all_vms()
        shutil.rmtree(self.root, ignore_errors=True)


class Registry:
    """A real OCI registry on a loopback port, with what was pushed to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`, the first part of a reference."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it on a free port and waits until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for _ in range(5):
            self.port = _free_port()
            self._start_once()
            if self._answers():
                return
            self.stop()
        raise RuntimeError(f"docker-registry does not start; see {self.directory}/log")

    def _start_once(self) -> None:
        config = self.directory / "config.json"  # YAML reads JSON
        config.write_text(
            json.dumps(
                {
                    "version": 0.1,
                    "log": {"level": "warn"},
                    "storage": {
                        "filesystem": {"rootdirectory": str(self.directory / "data")},
                        "delete": {"enabled": True},
                    },
                    "http": {"addr": self.host},
                }
            )
        )
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [_registry_program(), "serve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(OTEL_TRACES_EXPORTER="none"),
            )

    def _answers(self) -> bool:
        import socket

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
            time.sleep(0.05)
        return False

    def push(self, layout: Path, name: str) -> str:
        """Copies an OCI image layout in; gives the reference to pull."""
        reference = f"{self.host}/{name}"
        command = ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
        command += [f"oci:{layout}", f"docker://{reference}"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        return reference

    def stop(self) -> None:
        """Ends the registry."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _registry_program() -> str:
    """The registry that ./check unpacked beside the cache, else the installed one."""
    unpacked = CACHE / "docker-registry" / "usr" / "bin" / "docker-registry"
    return str(unpacked) if unpacked.exists() else "docker-registry"


@contextlib.contextmanager
def running_registry(directory: Path) -> Iterator[Registry]:
    """A registry for the time of the block."""
    registry = Registry(directory)
    registry.start()
    try:
        yield registry
    finally:
        registry.stop()
