#!/bin/sh
# The overlay's inittab has init start the daemon, so the init script must go.
set -e

rm -f "$TARGET_DIR/etc/init.d/S60rapiddiskd"
