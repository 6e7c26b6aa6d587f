#!/bin/sh
# init starts the daemon itself, under respawn, as the overlay's inittab says.
set -e

rm -f "$TARGET_DIR/etc/init.d/S60rapiddiskd"
