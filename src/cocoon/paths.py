"""Every path that the engine owns, as a function of the configuration. Nothing here touches the disk.

root_dir/  state.db state.lock store-id     the store
           blobs/                           <sha256>.erofs or .qcow2, root's, 0444
           kernels/<id>/                    the engine's own kernels: vmlinuz, modules.cpio, initrd-<digest>
           boot/<layer sha256>/             vmlinuz, initrd.img found in an image; in both vmlinux, unpacked
           vms/<id>/                        vm.json (mirror), exit.json, data-<name>.raw, volume-<n>.erofs, and
                                            cow.raw, config.img; or of a cloud image overlay.qcow2, seed.img,
                                            firmware-variables.fd
           work/<operation id>/             whatever is not finished yet
           parts/<sha256>.part              what was fetched of a layer (images/parts.py), or of the URL with this hash
                                            (cloudimg/partial.py); .lock: of whoever makes it
           operations/<id>.lock             held while the owner of an operation lives
run_dir/   vms/<id>/                        vm.lock alive.lock console.sock shim.sock channel-N.lock log metrics
log_dir/   vms/<id>/                        console.log vmm.log metrics.log, and each with .1
"""

from __future__ import annotations

import os

from cocoon.value import Value

NETNS_DIR = "/run/netns"
# In a VM's directory of logs, each with `.1` for the segment before.
VMM_LOG = "vmm.log"
VMM_METRICS = "metrics.log"
HOST_DIR = "/run/cocoon-host"  # What engines with other stores share on one host: locks on what is the host's.
DEFAULT_ROOT_DIR = "/var/lib/cocoon"
PACKAGE_DIR = os.path.dirname(os.path.abspath(__file__))
LIBEXEC_DIR = os.path.join(PACKAGE_DIR, "libexec")


def vmlinux_path(kernel_path: str) -> str:
    """Where the unpacked form of a kernel file of ours is, or would be: `vmlinux` for `vmlinuz`, beside it.

    Such a file never changes, since its directory is made whole; so the name need not say of which content it is.
    """
    directory, name = os.path.split(kernel_path)
    return f"{directory}/{name.replace('vmlinuz', 'vmlinux', 1)}"


class VMPaths(Value):
    """The paths of one VM; directories end without a slash."""

    disk_dir: str
    run_dir: str
    log_dir: str

    @property
    def mirror(self) -> str:
        return f"{self.disk_dir}/vm.json"

    @property
    def cow(self) -> str:
        return f"{self.disk_dir}/cow.raw"

    @property
    def overlay(self) -> str:
        return f"{self.disk_dir}/overlay.qcow2"

    @property
    def seed(self) -> str:
        return f"{self.disk_dir}/seed.img"

    @property
    def firmware_variables(self) -> str:
        return f"{self.disk_dir}/firmware-variables.fd"

    @property
    def config_disk(self) -> str:
        return f"{self.disk_dir}/config.img"

    def data_disk(self, name: str) -> str:
        """The user's disk of this name."""
        return f"{self.disk_dir}/data-{name}.raw"

    def volume(self, index: int) -> str:
        """The disk that the user's volume of this number became."""
        return f"{self.disk_dir}/volume-{index}.erofs"

    @property
    def exit_record(self) -> str:
        return f"{self.disk_dir}/exit.json"

    @property
    def vm_lock(self) -> str:
        return f"{self.run_dir}/vm.lock"

    @property
    def alive_lock(self) -> str:
        return f"{self.run_dir}/alive.lock"

    @property
    def console_socket(self) -> str:
        return f"{self.run_dir}/console.sock"

    def channel_lock(self, port: int) -> str:
        """The lock of whoever talks to the guest over this port of the control channel."""
        return f"{self.run_dir}/channel-{port}.lock"

    @property
    def console_log(self) -> str:
        return f"{self.log_dir}/console.log"

    @property
    def vmm_log(self) -> str:
        return f"{self.log_dir}/{VMM_LOG}"

    @property
    def vmm_metrics(self) -> str:
        return f"{self.log_dir}/{VMM_METRICS}"


class Paths(Value):
    """The three directories of one engine and what lies in them; absolute, without a trailing slash."""

    root_dir: str
    run_dir: str
    log_dir: str

    @property
    def database(self) -> str:
        return f"{self.root_dir}/state.db"

    @property
    def database_lock(self) -> str:
        return f"{self.root_dir}/state.lock"

    @property
    def blobs(self) -> str:
        return f"{self.root_dir}/blobs"

    @property
    def kernels(self) -> str:
        return f"{self.root_dir}/kernels"

    @property
    def boot(self) -> str:
        return f"{self.root_dir}/boot"

    @property
    def work(self) -> str:
        return f"{self.root_dir}/work"

    @property
    def parts(self) -> str:
        return f"{self.root_dir}/parts"

    def blob(self, digest_hex: str) -> str:
        """The EROFS file whose own SHA-256 is `digest_hex`."""
        return f"{self.blobs}/{digest_hex}.erofs"

    def base_disk(self, digest_hex: str) -> str:
        """The qcow2 file of a cloud image whose own SHA-256 is `digest_hex`."""
        return f"{self.blobs}/{digest_hex}.qcow2"

    def operation_lock(self, operation_id: str) -> str:
        return f"{self.root_dir}/operations/{operation_id}.lock"

    def operation_work(self, operation_id: str) -> str:
        return f"{self.work}/{operation_id}"

    def vm(self, vm_id: str) -> VMPaths:
        return VMPaths(
            disk_dir=f"{self.root_dir}/vms/{vm_id}",
            run_dir=f"{self.run_dir}/vms/{vm_id}",
            log_dir=f"{self.log_dir}/vms/{vm_id}",
        )

    def directories(self) -> tuple[str, ...]:
        """What must exist before anything else, parents first; each is made 0700."""
        return (
            self.root_dir, self.blobs, self.kernels, self.boot, self.work, self.parts,
            f"{self.root_dir}/vms", f"{self.root_dir}/operations",
            self.run_dir, f"{self.run_dir}/vms", self.log_dir, f"{self.log_dir}/vms",
        )  # fmt: skip
