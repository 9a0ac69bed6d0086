"""`exec VM COMMAND` without an option, in a few milliseconds: the row of the VM, the channel, the session.

What is out of the ordinary (a VM that does not run, an abbreviated id, another version of the store) is for the long
way, which knows what to say.
"""

from __future__ import annotations

import _sqlite3

from cocoon.cli.rows import SCHEMA_VERSION, connect, is_running

QUERY = """
SELECT id, name, uid, pid, start_ticks, boot_id,
    json_extract(body, '$.processes.init.pid'), json_extract(body, '$.processes.init.start_ticks'),
    json_extract(body, '$.processes.vmm.pid'), json_extract(body, '$.processes.vmm.start_ticks'),
    json_extract(body, '$.started_at'), json_extract(body, '$.channel')
FROM vm WHERE state = 'running' AND (id = ?1 OR name = ?1) ORDER BY id = ?1 DESC LIMIT 1
"""


def exec_quickly(directories: tuple[str, str], ref: str, command: list[str]) -> int | None:
    """The command's exit status, or None when the long way must be taken; nothing has been done then.

    `directories` are those of the state and of the sockets.
    """
    root, run_dir = directories
    try:
        connection = connect(root)
        if connection is None or connection.execute("PRAGMA user_version").fetchone() != (SCHEMA_VERSION,):
            return None
        row = connection.execute(QUERY, (ref,)).fetchone()
        connection.close()
    except _sqlite3.Error:
        return None
    if row is None or None in row or not is_running(*row[3:6]):
        return None
    return _exec(row, f"{run_dir}/vms/{row[0]}", command)


def _exec(row: tuple[str, ...], run_dir: str, command: list[str]) -> int:
    from cocoon.cli.joined import run_command
    from cocoon.cli.status import OWN_FAILURE
    from cocoon.engine.access import open_channel_to, patience_s
    from cocoon.errors import CocoonError, Interrupted
    from cocoon.guest.channel import ChannelAddress
    from cocoon.guest.session import Command
    from cocoon.model.capsule import ChannelKind
    from cocoon.model.vm import ProcessRef, VMProcesses
    from cocoon.paths import VMPaths

    _, name, uid, *numbers = row
    pid, start_ticks, boot_id, init_pid, init_ticks, vmm_pid, vmm_ticks, started_at, kind = numbers
    processes = VMProcesses(
        supervisor=ProcessRef(boot_id=boot_id, pid=int(pid), start_ticks=int(start_ticks)),
        init=ProcessRef(boot_id=boot_id, pid=int(init_pid), start_ticks=int(init_ticks)),
        vmm=ProcessRef(boot_id=boot_id, pid=int(vmm_pid), start_ticks=int(vmm_ticks)),
    )
    paths = VMPaths(disk_dir="", run_dir=run_dir, log_dir="")
    address = ChannelAddress(paths=paths, processes=processes, uid=int(uid), kind=ChannelKind(kind))
    try:
        with open_channel_to(name, address, timeout_s=patience_s(float(started_at))) as channel:
            guest_command = Command(arguments=tuple(command), stdin=False)
            return run_command(channel, guest_command, timeout_s=None, name=name)
    except CocoonError as error:
        from cocoon.cli.dispatch import report_error

        status = report_error(error, "vm exec")
        return status if isinstance(error, Interrupted) else OWN_FAILURE
