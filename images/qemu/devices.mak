# SPDX-License-Identifier: GPL-2.0-or-later
# The devices of our QEMU: q35 as the TDs of the tests have it, and what a guest with an operating system needs.
CONFIG_Q35=y
CONFIG_TDX=y
# QEMU 11.1 has the parent of its tdx-guest objects only with it (target/i386/meson.build, confidential-guest.c).
CONFIG_SEV=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_SERIAL=y
CONFIG_VIRTIO_RNG=y
CONFIG_VHOST_VSOCK=y
CONFIG_PVPANIC_ISA=y
CONFIG_PVPANIC_PCI=y
CONFIG_ISA_DEBUG=y
