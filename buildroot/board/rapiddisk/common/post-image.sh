#!/bin/sh
# Makes rapiddisk.img. The kernel is the program that UEFI firmware looks for on
# a disk; the name says for which processor.
set -e

rm -rf "$BINARIES_DIR/efi-part"
mkdir -p "$BINARIES_DIR/efi-part/EFI/BOOT"
if [ -e "$BINARIES_DIR/bzImage" ]; then
	cp "$BINARIES_DIR/bzImage" "$BINARIES_DIR/efi-part/EFI/BOOT/BOOTX64.EFI"
else
	cp "$BINARIES_DIR/vmlinuz.efi" "$BINARIES_DIR/efi-part/EFI/BOOT/BOOTAA64.EFI"
fi
support/scripts/genimage.sh -c "$(dirname "$0")/genimage.cfg"
