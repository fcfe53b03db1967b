# shellcheck shell=bash
# The tiny image: kernel modules, busybox, the guest agent and the workloads in an initramfs, and an
# empty data disk. Sourced by images/build.
# shellcheck disable=SC2034,SC2154

description='Debian cloud kernel and busybox; a demo image: root without a password on the console'
# swiotlb: without a small one a VM with room to grow (maxmem) loses 64 MiB to bounce buffers that
# virtio does not use. memhp: memory that is plugged in must be movable, or it cannot be taken back.
# init_on_alloc: zeroing each page that the balloon takes is most of the time that it needs where
# QEMU translates the guest's code: 2 s for 512 MiB, 0.3 s without.
append='console=ttyS0 quiet panic=1 memhp_default_state=online_movable swiotlb=512 init_on_alloc=0'
append+=' cryptomgr.notests'
min_memory='128MiB'
disk_size='64M'

need_programs() {
    need cpio cpio modinfo kmod qemu-img qemu-utils mkfs.ext4 e2fsprogs
    need_package_lists
    kernel=$(kernel_package)
    kernel_version=$(candidate "$kernel") || die "apt knows no package $kernel"
    busybox_version=$(candidate busybox-static) || die "apt knows no package busybox-static"
    workload=${workload:-$(build_static plimsoll-workload)}
}

describe_inputs() {
    echo "kernel $kernel $kernel_version"
    echo "busybox $busybox_version"
    echo "guest $(sha256sum <"$guest")"
    echo "workload $(sha256sum <"$workload")"
    echo "recipe $(sha256sum <"$images/build") $(sha256sum <"$images/lib.sh")"
    hash_files "$images/tiny"
}

build_image() {
    unpack "$kernel" "$kernel_version" "$work/kernel"
    unpack busybox-static "$busybox_version" "$work/busybox"
    cp "$work"/kernel/boot/vmlinuz-* "$work/out/vmlinuz"
    make_initrd
    make_data_disk
}

make_initrd() {
    local root=$work/root applet
    cp -r "$images/tiny/root" "$root"
    mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,run,tmp,root,seed,data,www,etc,var/log}
    cp "$work"/busybox/bin/busybox "$root/bin/busybox"
    while read -r applet; do
        [[ -e $root/$applet ]] || ln -s /bin/busybox "$root/$applet"
    done < <("$root/bin/busybox" --list-full | grep -E '^(usr/)?s?bin/')
    ln -sf /bin/busybox "$root/sbin/init"
    install -m 755 "$guest" "$root/usr/bin/plimsoll-guest"
    install -m 755 "$workload" "$root/usr/bin/plimsoll-workload"
    chmod 1777 "$root/tmp"
    copy_modules "$root"
    printf 'PRETTY_NAME="Plimsoll tiny"\nID=plimsoll-tiny\n' >"$root/etc/os-release"
    echo 'root::0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    # A fixed date and order: the same inputs give the same bytes.
    find "$root" -exec touch -h -d @0 {} +
    (cd "$root" && find . -print0 | sort -z |
        cpio --null --create --format=newc --owner=0:0 --reproducible --quiet) >"$work/out/initrd.img"
}

# copy_modules ROOT: the modules of images/tiny/modules, each after those it needs, and the lists
# of those that load at boot and with the power button's listener, in order.
copy_modules() {
    local root=$1 directory order module
    directory=$(echo "$work"/kernel/lib/modules/*)
    mkdir -p "$root/lib/modules"
    while read -r module; do
        case $module in
            '' | '#'*) continue ;;
            '@'*) order=power-button ;;
            *) order=boot ;;
        esac
        add_module "${module#@}"
    done <"$images/tiny/modules"
}

add_module() {
    local module=$1 file needed
    # Files are named with either sign; the kernel does not tell them apart.
    file=$(find "$directory" -name "${module//[-_]/[-_]}.ko" -print -quit)
    if [[ -z $file ]]; then
        grep -qE "/${module//[-_]/[-_]}\.ko$" "$directory/modules.builtin" ||
            die "the kernel has no module $module"
        return 0
    fi
    [[ -e $root/lib/modules/$(basename "$file") ]] && return 0
    for needed in $(modinfo -F depends "$file" | tr , ' '); do
        add_module "$needed"
    done
    cp "$file" "$root/lib/modules/"
    echo "/lib/modules/$(basename "$file")" >>"$root/lib/modules/$order"
}

make_data_disk() {
    truncate -s "$disk_size" "$work/data.raw"
    # Room for the file system to grow a thousandfold with the VM's disk.
    SOURCE_DATE_EPOCH=0 mkfs.ext4 -q -L plimsoll-data -m 0 -U 6c696e65-706c-4d73-8f6c-6c0000000001 \
        -E lazy_itable_init=1,hash_seed=6c696e65-706c-4d73-8f6c-6c0000000002,root_owner=0:0 \
        "$work/data.raw"
    qemu-img convert -q -f raw -O qcow2 "$work/data.raw" "$work/out/disk.qcow2"
}
