#!/bin/sh
# The overlay's inittab starts these itself: the daemon under respawn, and the
# network with what the data partition says.
set -e

rm -f "$TARGET_DIR/etc/init.d/S40network" "$TARGET_DIR/etc/init.d/S60rapiddiskd"
