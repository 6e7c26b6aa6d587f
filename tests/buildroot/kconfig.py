"""Reads the tree's Config.in with kconfiglib, under a root that stands in for
Buildroot's: tests/buildroot/kconfig.py TREE"""

import os
import pathlib
import re
import sys
import tempfile

import kconfiglib

ROOT = """
config BR2_ARCH_IS_64
	bool "64 bit"
	default y

config BR2_LINUX_KERNEL
	bool "kernel"

config BR2_PACKAGE_HOST_RUSTC_TARGET_ARCH_SUPPORTS
	bool
	default y

config BR2_PACKAGE_HOST_RUSTC
	bool

source "$BR2_EXTERNAL_RAPIDDISKD_PATH/Config.in"
"""


def main(tree):
    os.environ["BR2_EXTERNAL_RAPIDDISKD_PATH"] = str(tree)
    with tempfile.NamedTemporaryFile("w", suffix=".in") as root:
        root.write(ROOT)
        root.flush()
        kconfig = kconfiglib.Kconfig(root.name, warn_to_stderr=False)
    package = kconfig.syms["BR2_PACKAGE_RAPIDDISKD"]
    kernel = kconfig.syms["BR2_LINUX_KERNEL"]
    comments = [node for node in kconfig.node_iter() if node.item == kconfiglib.COMMENT]

    def shown():
        return [kconfiglib.expr_value(node.dep) != 0 for node in comments]

    assert not kconfig.warnings, kconfig.warnings
    assert package.visibility == 0 and shown() == [True], "offered without a kernel, or nothing says why not"
    kernel.set_value(2)
    assert package.visibility == 2 and shown() == [False], "not offered with a kernel"
    package.set_value(2)
    assert kconfig.syms["BR2_PACKAGE_HOST_RUSTC"].str_value == "y", "no Rust compiler"

    options = {name for name in kconfig.syms if name.startswith("BR2_PACKAGE_RAPIDDISKD_")}
    for name in sorted(options):
        assert kconfig.syms[name].visibility == 2, f"{name} is not offered"
        assert kconfig.syms[name].nodes[0].help or kconfig.syms[name].choice, f"{name} has no help"
    port = kconfig.syms["BR2_PACKAGE_RAPIDDISKD_PORT"]
    program = (tree.parent / "src/cli/config.rs").read_text()
    assert f"DEFAULT_PORT: u16 = {port.str_value};" in program, "the default port is not the program's"

    # What is asked for is used, and the other way round. A driver that is the
    # program's own choice needs no argument.
    used = set(re.findall(r"BR2_PACKAGE_RAPIDDISKD_\w+", (tree / "package/rapiddiskd/rapiddiskd.mk").read_text()))
    automatic = {name for name in options if name.endswith("_AUTO")}
    assert used == options - automatic, used ^ (options - automatic)
    for defconfig in sorted((tree / "configs").iterdir()):
        symbols = set(re.findall(r"BR2_PACKAGE_RAPIDDISKD\w*", defconfig.read_text()))
        assert "BR2_PACKAGE_RAPIDDISKD" in symbols and symbols <= options | {package.name}, defconfig


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
