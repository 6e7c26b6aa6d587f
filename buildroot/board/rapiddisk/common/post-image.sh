#!/bin/sh
# Makes rapiddisk.img. UEFI firmware starts a program of a fixed name, one for each
# processor architecture. The kernel gets this name.
set -e

rm -rf "$BINARIES_DIR/efi-part"
mkdir -p "$BINARIES_DIR/efi-part/EFI/BOOT"
if [ -e "$BINARIES_DIR/bzImage" ]; then
	cp "$BINARIES_DIR/bzImage" "$BINARIES_DIR/efi-part/EFI/BOOT/BOOTX64.EFI"
else
	cp "$BINARIES_DIR/vmlinuz.efi" "$BINARIES_DIR/efi-part/EFI/BOOT/BOOTAA64.EFI"
fi
support/scripts/genimage.sh -c "$(dirname "$0")/genimage.cfg"
