"""Settings: flag, else environment `COCOON_<KEY>`, else the TOML file given by `--config`, else the default.

Unknown keys in the file and unknown `COCOON_` variables that look like keys are errors: a typing error in a setting
must never be silence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cocoon.errors import InvalidSpec
from cocoon.paths import DEFAULT_ROOT_DIR, Paths
from cocoon.units import parse_subnet, printable
from cocoon.value import Value

ENVIRONMENT_PREFIX = "COCOON_"
# Variables with our prefix that are not settings.
RESERVED_VARIABLES = ("COCOON_FAILPOINT", "COCOON_CONFIG", "COCOON_SHIM")
# Where uids of VMs begin: with those of mkfs.erofs below it and a million of VMs above it none is root's or an
# account's, and all fit a signed integer (host/tap.py).
UID_LOWEST, UID_HIGHEST = 200_000, 2_145_000_000
RESERVED_PREFIXES = ("COCOON_TEST_", "COCOON_CHECK_")


class Config(Value):
    """Every setting, with its default. Paths are absolute; an empty string means: derived from another one.

    `mirrors` are words `registry=URL`, in a file also a table of lists (oci/endpoint.py); `insecure_registries` hosts.
    """

    root_dir: str = DEFAULT_ROOT_DIR
    run_dir: str = ""
    log_dir: str = ""
    qemu_binary: str = ""
    mkfs_erofs_binary: str = ""
    cloud_hypervisor_binary: str = "cloud-hypervisor"
    firecracker_binary: str = "firecracker"
    hypervisor: str = "auto"
    default_kernel: str = ""
    dns: str = "8.8.8.8,1.1.1.1"
    subnet: str = ""
    cni_conf_dir: str = "/etc/cni/net.d"
    cni_bin_dir: str = "/opt/cni/bin:/usr/lib/cni"
    cni_cache_dir: str = "/var/lib/cni"
    uid_base: int = 1_900_000_000
    stop_timeout_s: int = 30
    erofs_compression: str = "lz4"
    insecure_registries: str = ""
    mirrors: str = ""

    def paths(self) -> Paths:
        """Where everything is; `run_dir` and `log_dir` follow `root_dir` unless they were set."""
        return Paths(
            root_dir=self.root_dir,
            run_dir=self.run_dir or f"{self.root_dir}/run",
            log_dir=self.log_dir or f"{self.root_dir}/log",
        )


def load_config(path: str | None, environment: Mapping[str, str], flags: Mapping[str, str | None]) -> Config:
    """The settings of one command.

    `flags` holds what the command line gave (None: not given). Raises InvalidSpec for a file that cannot be read or
    parsed, an unknown key, a value of the wrong type, or a path that is not absolute or holds control characters.
    """
    given: dict[str, object] = {}
    path = path or environment.get("COCOON_CONFIG") or None
    if path is not None:
        given.update(_read_file(path))
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and text and not _is_reserved(name):
            given[_checked_key(name[len(ENVIRONMENT_PREFIX) :].lower(), f"environment variable {name}")] = text
    given.update({key: text for key, text in flags.items() if text is not None})
    return _checked(Config(**{key: _typed(key, item) for key, item in given.items()}))


def _is_reserved(name: str) -> bool:
    return name in RESERVED_VARIABLES or name.startswith(RESERVED_PREFIXES)


def _read_file(path: str) -> dict[str, object]:
    import tomllib

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise InvalidSpec(f"configuration file {printable(path)}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"configuration file {printable(path)} is not TOML: {error}") from error
    return {_checked_key(key, f"configuration file {printable(path)}"): item for key, item in content.items()}


def _checked_key(key: str, where: str) -> str:
    if key not in Config._fields:
        known = ", ".join(sorted(Config._fields))
        raise InvalidSpec(f"{where} sets {printable(key)}, which is no setting", hint=f"settings are: {known}")
    return key


def _typed(key: str, item: object) -> Any:
    """`item` as the type of the setting `key`."""
    if isinstance(Config._defaults[key], int):
        try:
            return int(str(item))
        except ValueError as error:
            raise InvalidSpec(f"setting {key} must be a whole number, not {printable(str(item))}") from error
    if key == "insecure_registries" and isinstance(item, list):
        item = ",".join(map(str, item))
    if key == "mirrors" and isinstance(item, dict):
        lists = {name: urls if isinstance(urls, list) else [urls] for name, urls in item.items()}
        item = " ".join(f"{name}={url}" for name, urls in lists.items() for url in urls)
    if not isinstance(item, str):
        raise InvalidSpec(f"setting {key} must be a string, not {printable(str(item))}")
    return item


def _checked(config: Config) -> Config:
    for key in ("root_dir", "run_dir", "log_dir"):
        path = getattr(config, key)
        if path and not (path.isprintable() and os.path.isabs(path)):
            raise InvalidSpec(f"setting {key} must be an absolute path, not {printable(path)}")
    if config.stop_timeout_s <= 0:
        raise InvalidSpec(f"setting stop_timeout_s must be greater than 0, not {config.stop_timeout_s}")
    if not UID_LOWEST <= config.uid_base <= UID_HIGHEST:
        raise InvalidSpec(f"setting uid_base must be {UID_LOWEST} to {UID_HIGHEST}, not {config.uid_base}")
    try:
        if config.subnet:
            parse_subnet(config.subnet)
    except InvalidSpec as error:
        raise InvalidSpec(f"setting subnet: {error.message}", hint=error.hint) from error
    return config.replace(
        root_dir=os.path.normpath(config.root_dir),
        run_dir=os.path.normpath(config.run_dir) if config.run_dir else "",
        log_dir=os.path.normpath(config.log_dir) if config.log_dir else "",
    )
