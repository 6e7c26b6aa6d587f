"""The appliance on this machine: builds the static binary, and boots it in QEMU with
the appliance's own root file system on Debian's kernel with the RapidDisk modules, an
empty data partition and two disks of 64 MiB, vdc and vdd. A port of 127.0.0.1 leads to
it. Runs until Ctrl-C.

  tests/appliance [--port N]        (9118)
"""

import argparse
import os
import pathlib
import signal
import socket
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
WORK = TOP / "target/appliance"
sys.dont_write_bytecode = True
from guest import MIB, Guest, data_partition, disk_image, first_token


def last_line(*command):
    """What a program prints last; the rest is for whoever watches."""
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return lines[-1]


def main():
    parser = argparse.ArgumentParser(prog="tests/appliance", add_help=False)
    parser.add_argument("--port", type=int, default=9118)
    port = parser.parse_args().port
    if not 0 < port < 1 << 16:
        sys.exit(f"appliance: --port: not a port: {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            sys.exit(f"appliance: port {port} of 127.0.0.1: {error.strerror} (--port N takes another)")

    os.environ["PATH"] += ":/usr/sbin:/sbin"
    WORK.mkdir(parents=True, exist_ok=True)
    kernel = last_line(TOP / "tests/buildroot/root", last_line(TOP / "tests/musl"), WORK)
    drives = [WORK / "root.squashfs", data_partition(WORK / "data.img")]
    drives += [disk_image(WORK / name, 64 * MIB) for name in ("vdc.img", "vdd.img")]
    with Guest(WORK, kernel, "console", drives, port=port) as guest:
        token = first_token(guest)
        guest.ready(token)
        url = f"http://127.0.0.1:{port}/v1"
        header = f"-H 'Authorization: Bearer {token}'"
        print(
            f"""The appliance serves at {url}
Its administrator's token, as its console shows it: {token}
Try:
  curl -s {header} {url}/listAllResources
  curl -s {header} -X POST {url}/createRapidDisk/64
  curl -s {header} -X POST {url}/createRapidDiskCache/rd0/vdc/write-through
Its console is in {WORK.relative_to(TOP)}/console.log. Ctrl-C ends it.""",
            flush=True,
        )
        guest.qemu.wait()


if __name__ == "__main__":
    # The guest goes with its user, whatever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"appliance: {error}")
