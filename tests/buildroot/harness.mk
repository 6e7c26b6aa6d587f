# Stands in for Buildroot around rapiddiskd.mk: prints its variables and runs
# its hooks into TARGET_DIR, without a toolchain. Called by tests/buildroot/tree.

empty :=
comma := ,
# Each hook begins on a line of its own.
define sep


endef
qstrip = $(strip $(subst ",,$(1)))
UPPERCASE = $(shell printf '%s' '$(1)' | tr 'a-z-' 'A-Z_')
INSTALL := install
BR2_EXTERNAL_RAPIDDISKD_PATH := $(TREE)
RUSTC_TARGET_NAME := x86_64-unknown-linux-musl
# As Buildroot sets it for each package's recipes.
RAPIDDISKD_PKGDIR = $(TREE)/package/rapiddiskd
KCONFIG_ENABLE_OPT = @echo $(1)=y
cargo-package =

include $(TREE)/external.mk

print-%:
	@printf '%s\n' '$(strip $($*))'

fixups:
	$(RAPIDDISKD_LINUX_CONFIG_FIXUPS)

# The hooks take @D for the build directory.
$(BUILD_DIR)/VENDOR:
	$(foreach hook,$(RAPIDDISKD_PRE_BUILD_HOOKS),$($(hook))$(sep))

install:
	$(foreach hook,$(RAPIDDISKD_POST_INSTALL_TARGET_HOOKS),$($(hook))$(sep))
	$(RAPIDDISKD_INSTALL_INIT_SYSV)
	$(RAPIDDISKD_INSTALL_INIT_SYSTEMD)

.PHONY: fixups install
