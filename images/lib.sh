# shellcheck shell=bash
# What the builds of all images share. Sourced by images/build, which sets: images, repository,
# cache, name, guest, workload, work, out.
# shellcheck disable=SC2154

say() { echo "images/build: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# need PROGRAM PACKAGE ...: installs the packages whose programs are missing.
need() {
    local missing=()
    while (($#)); do
        command -v "$1" >/dev/null || missing+=("$2")
        shift 2
    done
    ((${#missing[@]} == 0)) && return
    ((EUID == 0)) || die "missing packages: ${missing[*]} (install them, or run this as root)"
    say "installing ${missing[*]}"
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

# build_static PACKAGE: builds a package's program of the same name as a static binary, and prints
# its path. cargo decides whether there is anything to do.
build_static() {
    local package=$1 target=x86_64-unknown-linux-gnu directory=$repository/target/guest-static
    command -v cargo >/dev/null || die "cargo is missing: install Rust, or give the programs as files"
    (cd "$repository" && RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet \
        --package "$package" --profile guest --target "$target" --target-dir "$directory") >&2
    local binary=$directory/$target/guest/$package
    # "ldd" fails on a binary that needs no libraries, or says so.
    if ldd "$binary" 2>/dev/null | grep -q '=>'; then
        die "$binary is not static"
    fi
    echo "$binary"
}

# candidate PACKAGE: prints the version that apt would install.
candidate() {
    local version
    version=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p')
    [[ -n $version && $version != '(none)' ]] || return 1
    echo "$version"
}

# Makes sure that apt knows Debian's packages.
need_package_lists() {
    candidate linux-image-cloud-amd64 >/dev/null && return
    ((EUID == 0)) && apt-get update -q >&2
    candidate linux-image-cloud-amd64 >/dev/null ||
        die "apt knows no package linux-image-cloud-amd64: its sources must name Debian 12 or newer"
}

# The concrete package behind Debian's cloud kernel, such as linux-image-6.1.0-38-cloud-amd64.
kernel_package() {
    local depends
    depends=$(apt-cache show --no-all-versions linux-image-cloud-amd64 | sed -n 's/^Depends: //p')
    [[ $depends =~ linux-image-[0-9][^\ ,]*-cloud-amd64 ]] || die "no kernel in: $depends"
    echo "${BASH_REMATCH[0]}"
}

# unpack PACKAGE VERSION DIR: downloads a package once, and unpacks it without installing it.
unpack() {
    local package=$1 version=$2 directory=$3 file
    file=$cache/${package}_${version//:/%3a}.deb
    if [[ ! -f $file ]]; then
        say "downloading $package $version"
        local download
        download=$(mktemp -d)
        # apt's own user could not write to a private directory.
        chmod 755 "$download"
        (cd "$download" && apt-get download -q "$package=$version" 2>"$download/log" >&2) ||
            die "cannot download $package: $(<"$download/log")"
        mv "$download"/*.deb "$file"
        rm -rf "$download"
    fi
    dpkg-deb -x "$file" "$directory"
}

# hash_files DIR: one line for each file below it, in a fixed order.
hash_files() {
    (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

# write_manifest DIR: image.toml from what build_image left in the variables
# description, append and min_memory, with the checksum of every file.
write_manifest() {
    local directory=$1 file
    {
        echo "# Made by images/build; read by \"plimsoll image import\"."
        echo "name = \"$name\""
        echo "description = \"$description\""
        echo 'kernel = "vmlinuz"'
        echo 'initrd = "initrd.img"'
        echo "append = \"$append\""
        echo 'disk = "disk.qcow2"'
        echo "min_memory = \"$min_memory\""
        echo 'guest_agent = true'
        echo
        echo '[sha256]'
        for file in vmlinuz initrd.img disk.qcow2; do
            echo "\"$file\" = \"$(sha256sum <"$directory/$file" | cut -d' ' -f1)\""
        done
    } >"$directory/image.toml"
}
