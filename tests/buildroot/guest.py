"""A guest in QEMU that boots an appliance's root file system, for the tests beside this file."""

import http.client
import json
import os
import re
import socket
import subprocess
import threading
import time

# Never expected, whatever the appliance asks the kernel for; and a script's, that it has no such program.
COMPLAINT = re.compile(
    rb"\bBUG[: ]|WARNING:|Oops|general protection|Call Trace|Kernel panic|blocked for more than|line \d+: .*: not found"
)
MIB = 1 << 20
# The kernel's own test of its timer fails, and panics, where the emulator has to wait for a processor.
ANY_SPEED = "no_timer_check"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def initramfs(kernel):
    """The name that tests/buildroot/lead gives the one for this kernel."""
    return f"initramfs-{os.path.basename(kernel).removeprefix('vmlinuz-')}.gz"


class Guest:
    """A running appliance, its serial console and its API. What it leaves is in the
    directory `work`. A kernel is started with its initramfs there, and the first of
    `drives` is its root; without one, UEFI firmware looks on the drives for itself.
    What the guest says on its second serial port is in `name`.serial."""

    def __init__(self, work, kernel, name, drives, words="", port=None):
        self.port = port or free_port()
        self.monitor = free_port()
        self.console = b""
        self.log = open(work / f"{name}.log", "wb", buffering=0)
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "512", "-no-reboot"]
        command += ["-display", "none", "-serial", "stdio"]
        command += ["-serial", f"file:{work / name}.serial"]
        command += ["-monitor", f"tcp:127.0.0.1:{self.monitor},server=on,wait=off"]
        command += ["-nic", f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{self.port}-:9118"]
        if kernel:
            command += ["-kernel", kernel, "-initrd", work / initramfs(kernel)]
            command += ["-append", f"console=tty0 console=ttyS0 quiet panic=-1 net.ifnames=0 {ANY_SPEED} {words}"]
        else:
            command += ["-bios", "/usr/share/ovmf/OVMF.fd"]
        for drive in drives:
            # Without waiting for this machine's disk: what is written outlives the guest anyway.
            options = "format=raw,if=virtio,cache=unsafe" + (",readonly=on" if kernel and drive is drives[0] else "")
            command += ["-drive", f"file={drive},{options}"]
        self.qemu = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        threading.Thread(target=self.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.qemu.kill()
        self.qemu.wait()
        if kind:
            print(self.console.decode(errors="replace")[-3000:])
        assert not COMPLAINT.search(self.console), COMPLAINT.search(self.console)

    def read(self):
        while part := self.qemu.stdout.read1(4096):
            self.console += part
            self.log.write(part)

    def expect(self, pattern, seconds=60, start=0):
        """Waits until the console shows it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.compile(pattern.encode()).search(self.console, start):
                return found
            assert self.qemu.poll() is None, f"the guest ended before {pattern!r}"
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} on the console within {seconds} s")

    def press_power_button(self):
        with socket.create_connection(("127.0.0.1", self.monitor)) as monitor:
            monitor.sendall(b"system_powerdown\n")
            # Closed at once, it would not be read.
            monitor.recv(4096)
            self.qemu.wait(60)

    def login(self):
        self.expect("login: ")
        self.qemu.stdin.write(b"root\n")
        self.qemu.stdin.flush()
        self.expect(r"# ")
        # A shell that echoes and edits nothing.
        self.qemu.stdin.write(b"""stty -echo; while IFS= read -r l; do eval "$l"; done\n""")
        self.qemu.stdin.flush()
        self.run("true")

    def run(self, command, seconds=30):
        """What a shell on the console prints for a command."""
        start = len(self.console)
        line = f"{command}; echo 'E''ND'"
        self.qemu.stdin.write(f"{line}\n".encode())
        self.qemu.stdin.flush()
        found = self.expect(r"\bEND\r\n", seconds, start)
        said = self.console[start : found.start()].decode(errors="replace").replace("\r", "").strip()
        # init has the console echo again whenever it starts something.
        return said.removeprefix(line).strip()

    def ask(self, method, path, token=None, seconds=20):
        """The code and the body, or None where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            connection.request(method, f"/v1/{path}", headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def ready(self, token=None, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # QEMU takes the connection before anybody listens in the guest.
            if answer := self.ask("GET", "checkServiceStatus", token, 1):
                return answer[0]
            time.sleep(0.05)
        raise AssertionError(f"no answer within {seconds} s")

    def change(self, path, token):
        code, body = self.ask("POST", path, token)
        assert code == 200, (path, code, body)
        return json.loads(body)


def first_token(guest):
    """The token of an appliance that boots for the first time, which its console shows."""
    return token_of(guest, "first boot:")


def token_of(guest, text):
    return guest.expect(text + r" the token of the admin 'console' is (\S+)\r").group(1).decode()


def data_partition(path, *options):
    return disk_image(path, 8 * MIB, "-L", "rapiddisk-data", *options)


def disk_image(path, size, *options):
    """An empty disk, or with options of mke2fs a file system."""
    path.write_bytes(b"")
    os.truncate(path, size)
    if options:
        subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, path], check=True)
    return path
