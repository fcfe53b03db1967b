# shellcheck shell=bash
# The debian-12 image: systemd, cloud-init and the guest agent on an ext4 disk, with Debian's cloud
# kernel booted directly. Sourced by images/build.
# shellcheck disable=SC2034,SC2154

description='Debian 12 with systemd and cloud-init'
append='root=LABEL=plimsoll-root ro console=ttyS0 panic=1 memhp_default_state=online_movable swiotlb=512'
min_memory='384MiB'
disk_size='2G'
suite=bookworm
packages=(
    ca-certificates cloud-init dbus e2fsprogs initramfs-tools iproute2 iputils-ping kmod
    libnss-resolve linux-image-cloud-amd64 netbase openssh-server procps sudo systemd-resolved
    systemd-sysv udev wget zstd
)

need_programs() {
    ((EUID == 0)) || die "debian-12 is built as root: its files belong to root"
    need mmdebstrap mmdebstrap qemu-img qemu-utils mkfs.ext4 e2fsprogs
    [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || {
        apt-get update -q >&2
        apt-get install -y -q debian-archive-keyring >&2
    }
}

# Newer packages in Debian are no change of the inputs: --force fetches them.
describe_inputs() {
    echo "suite $suite"
    echo "packages ${packages[*]}"
    echo "guest $(sha256sum <"$guest")"
    echo "recipe $(sha256sum <"$images/build") $(sha256sum <"$images/lib.sh")"
    hash_files "$images/debian-12"
}

build_image() {
    local root=$work/root include mirror=()
    include=$(IFS=,; echo "${packages[*]}")
    # Without a mirror mmdebstrap takes Debian's own, its updates and its security fixes.
    [[ -z ${PLIMSOLL_DEBIAN_MIRROR:-} ]] || mirror=("$PLIMSOLL_DEBIAN_MIRROR")
    say "installing Debian's packages (some minutes)"
    # The settings go in before the kernel is installed, which builds the initrd after them.
    mmdebstrap --mode=root --variant=minbase --quiet --include="$include" \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --essential-hook="cp -r --no-preserve=ownership '$images/debian-12/root/.' \"\$1/\"" \
        "$suite" "$root" "${mirror[@]}" >&2
    finish_root "$root"
    cp "$(echo "$root"/boot/vmlinuz-*)" "$work/out/vmlinuz"
    cp "$(echo "$root"/boot/initrd.img-*)" "$work/out/initrd.img"
    make_disk "$root"
}

finish_root() {
    local root=$1 kernel unit
    chown -R root:root "$root/etc/cloud" "$root/etc/initramfs-tools"
    install -m 755 "$guest" "$root/usr/bin/plimsoll-guest"
    chroot "$root" systemctl --quiet enable plimsoll-guest systemd-networkd systemd-resolved
    # What costs minutes of a small VM's CPU without being asked for.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
        e2scrub_reap.service fstrim.timer; do
        chroot "$root" systemctl --quiet mask "$unit"
    done
    # The host boots this very kernel: an upgrade inside would take its modules away.
    kernel=$(echo "$root"/boot/vmlinuz-*)
    chroot "$root" apt-mark -qq hold linux-image-cloud-amd64 "linux-image-${kernel##*/vmlinuz-}"
    echo 'LABEL=plimsoll-root / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
    # Each VM makes its own.
    : >"$root/etc/machine-id"
    rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/var/lib/dbus/machine-id"
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/*.log \
        "$root"/var/log/apt
}

make_disk() {
    say "making the disk"
    truncate -s "$disk_size" "$work/disk.raw"
    mkfs.ext4 -q -L plimsoll-root -m 1 -E lazy_itable_init=1 -d "$1" "$work/disk.raw"
    qemu-img convert -q -f raw -O qcow2 -c -o compression_type=zstd "$work/disk.raw" \
        "$work/out/disk.qcow2"
}
