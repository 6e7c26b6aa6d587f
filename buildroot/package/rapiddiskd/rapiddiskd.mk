################################################################################
#
# rapiddiskd
#
################################################################################

RAPIDDISKD_VERSION = 0.2.0
RAPIDDISKD_SITE = $(realpath $(BR2_EXTERNAL_RAPIDDISKD_PATH)/..)
RAPIDDISKD_SITE_METHOD = local
RAPIDDISKD_LICENSE = MIT or Apache-2.0
RAPIDDISKD_LICENSE_FILES = LICENSE-APACHE LICENSE-MIT

# Copy only what the build needs. A checkout may contain much more, even the output
# directory of this build.
RAPIDDISKD_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = \
	$(addprefix --include=/,.cargo Cargo.lock Cargo.toml src VENDOR) \
	$(addprefix --include=/,$(RAPIDDISKD_LICENSE_FILES)) \
	--exclude='/*'

# The tests use the profile in Cargo.toml, so this restores what the
# infrastructure overrides. Without the first flag of rustc, some toolchains link a
# musl program dynamically. The second one keeps the path of the build directory
# out of the program.
RAPIDDISKD_CARGO_ENV = \
	CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 \
	CARGO_PROFILE_RELEASE_LTO=fat \
	CARGO_PROFILE_RELEASE_OPT_LEVEL=2 \
	CARGO_TARGET_$(call UPPERCASE,$(RUSTC_TARGET_NAME))_RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$(@D)/="

# The infrastructure vendors crates when it downloads a package, and a local
# package is not downloaded. Sources that already contain their crates are left as
# they are. The crates are vendored again when Cargo.lock has changed, which can
# happen before a rapiddiskd-rebuild.
define RAPIDDISKD_VENDOR
	cd $(@D) && \
	if [ ! -e .cargo/config.toml ] || [ -e .vendored ]; then \
		cmp -s Cargo.lock .vendored || { \
			mkdir -p .cargo && \
			$(TARGET_MAKE_ENV) $(PKG_CARGO_ENV) \
				cargo vendor --locked VENDOR > .vendored && \
			mv .vendored .cargo/config.toml && \
			cp Cargo.lock .vendored; \
		}; \
	fi
endef
RAPIDDISKD_PRE_BUILD_HOOKS += RAPIDDISKD_VENDOR

RAPIDDISKD_ARGS = \
	--port $(BR2_PACKAGE_RAPIDDISKD_PORT) \
	$(addprefix --listen ,$(call qstrip,$(BR2_PACKAGE_RAPIDDISKD_LISTEN))) \
	$(addprefix --memory-limit ,$(call qstrip,$(BR2_PACKAGE_RAPIDDISKD_MEMORY_LIMIT))) \
	$(if $(BR2_PACKAGE_RAPIDDISKD_RAM_LOOP),--ram-driver loop) \
	$(if $(BR2_PACKAGE_RAPIDDISKD_RAM_RAPIDDISK),--ram-driver rapiddisk) \
	$(if $(BR2_PACKAGE_RAPIDDISKD_CACHE_DM_CACHE),--cache-driver dm-cache) \
	$(if $(BR2_PACKAGE_RAPIDDISKD_CACHE_RAPIDDISK_CACHE),--cache-driver rapiddisk-cache) \
	$(addprefix --token-file ,$(call qstrip,$(BR2_PACKAGE_RAPIDDISKD_TOKEN_FILE)))

define RAPIDDISKD_INSTALL_DEFAULTS
	mkdir -p $(TARGET_DIR)/etc/default $(TARGET_DIR)/etc/rapiddiskd
	printf 'RAPIDDISKD_ARGS="%s"\n' '$(strip $(RAPIDDISKD_ARGS))' \
		> $(TARGET_DIR)/etc/default/rapiddiskd
endef
RAPIDDISKD_POST_INSTALL_TARGET_HOOKS += RAPIDDISKD_INSTALL_DEFAULTS

define RAPIDDISKD_INSTALL_MAN_PAGE
	$(INSTALL) -D -m 0644 $(RAPIDDISKD_PKGDIR)/rapiddiskd.8 \
		$(TARGET_DIR)/usr/share/man/man8/rapiddiskd.8
endef
RAPIDDISKD_POST_INSTALL_TARGET_HOOKS += RAPIDDISKD_INSTALL_MAN_PAGE

# The package has no user of its own: the daemon needs the rights of root on files,
# and itself drops those of root's capabilities that it does not need.
define RAPIDDISKD_PERMISSIONS
	/etc/rapiddiskd d 700 0 0 - - - - -
endef

define RAPIDDISKD_LINUX_CONFIG_FIXUPS
	$(call KCONFIG_ENABLE_OPT,CONFIG_BLK_DEV)
	$(call KCONFIG_ENABLE_OPT,CONFIG_BLK_DEV_DM)
	$(call KCONFIG_ENABLE_OPT,CONFIG_BLK_DEV_LOOP)
	$(call KCONFIG_ENABLE_OPT,CONFIG_BLOCK)
	$(call KCONFIG_ENABLE_OPT,CONFIG_CONFIGFS_FS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_DEVTMPFS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_DM_CACHE)
	$(call KCONFIG_ENABLE_OPT,CONFIG_DM_CACHE_SMQ)
	$(call KCONFIG_ENABLE_OPT,CONFIG_DM_WRITECACHE)
	$(call KCONFIG_ENABLE_OPT,CONFIG_EPOLL)
	$(call KCONFIG_ENABLE_OPT,CONFIG_EVENTFD)
	$(call KCONFIG_ENABLE_OPT,CONFIG_FILE_LOCKING)
	$(call KCONFIG_ENABLE_OPT,CONFIG_FUTEX)
	$(call KCONFIG_ENABLE_OPT,CONFIG_INET)
	$(call KCONFIG_ENABLE_OPT,CONFIG_IPV6)
	$(call KCONFIG_ENABLE_OPT,CONFIG_MD)
	$(call KCONFIG_ENABLE_OPT,CONFIG_NET)
	$(call KCONFIG_ENABLE_OPT,CONFIG_NVME_TARGET)
	$(call KCONFIG_ENABLE_OPT,CONFIG_NVME_TARGET_TCP)
	$(call KCONFIG_ENABLE_OPT,CONFIG_PROC_FS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_SHMEM)
	$(call KCONFIG_ENABLE_OPT,CONFIG_SIGNALFD)
	$(call KCONFIG_ENABLE_OPT,CONFIG_SYSFS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_TMPFS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_UNIX)
endef

define RAPIDDISKD_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(RAPIDDISKD_PKGDIR)/S60rapiddiskd \
		$(TARGET_DIR)/etc/init.d/S60rapiddiskd
endef

define RAPIDDISKD_INSTALL_INIT_SYSTEMD
	$(INSTALL) -D -m 0644 $(RAPIDDISKD_PKGDIR)/rapiddiskd.service \
		$(TARGET_DIR)/usr/lib/systemd/system/rapiddiskd.service
	$(INSTALL) -D -m 0644 $(RAPIDDISKD_PKGDIR)/rapiddiskd-quiesce.service \
		$(TARGET_DIR)/usr/lib/systemd/system/rapiddiskd-quiesce.service
	$(INSTALL) -D -m 0755 $(RAPIDDISKD_PKGDIR)/rapiddiskd-quiesce \
		$(TARGET_DIR)/usr/libexec/rapiddiskd-quiesce
endef

$(eval $(cargo-package))
