# shellcheck shell=bash
# shellcheck disable=SC2034  # used by those who source this
# Sourced by quickstart and check: distribution packages, installed only where missing.

case $(uname -m) in
x86_64) deb_arch=amd64 qemu_package=qemu-system-x86 firmware_package=ovmf ;;
*) deb_arch=arm64 qemu_package=qemu-system-arm firmware_package=qemu-efi-aarch64 ;;
esac

# What cocoon itself runs, and what it takes to build it and a guest image.
run_packages=("$qemu_package" "$firmware_package" qemu-utils e2fsprogs dosfstools mtools iproute2 nftables kmod util-linux)
build_packages=(python3 python3-venv musl-tools gcc make linux-libc-dev mmdebstrap debian-archive-keyring ca-certificates)

apt_quiet() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

missing_packages() { # missing_packages NAME...: those that are not installed, one a line
    local name
    for name in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] || printf '%s\n' "$name"
    done
}

install_packages() { # install_packages NAME...: one apt-get for all that is missing; `apt-get update` only when needed
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    # A run that was interrupted may have left packages unpacked.
    [ -z "$(dpkg --audit)" ] || DEBIAN_FRONTEND=noninteractive dpkg --configure -a
    if apt_quiet install -y --no-install-recommends "${missing[@]}"; then return 0; fi
    # No lists yet (a new machine), or lists too old for the mirror.
    apt_quiet update
    apt_quiet install -y --no-install-recommends "${missing[@]}"
}

install_set_up() { # install_set_up NAME...: those, and erofs-utils where the distribution's can read tar files (1.8)
    install_packages "$@"
    # Asked only now: on a new machine apt had no lists before.
    if has_candidate erofs-utils 1.8; then install_packages erofs-utils; fi
}

has_candidate() { # has_candidate NAME VERSION: the distribution offers NAME in VERSION or newer
    local candidate
    candidate=$(apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" { print $2 }')
    [ -n "$candidate" ] && [ "$candidate" != "(none)" ] && dpkg --compare-versions "$candidate" ge "$2"
}

debian_suite() { # debian_suite WHAT: the Debian release that the quickstart takes WHAT from
    local newest=trixie
    # The kernel of this machine's own release where it is a Debian: 6.1 boots in two thirds of the time of 6.12 under
    # emulation, which is where it matters; a newer machine gets its newer kernel.
    # shellcheck source=/dev/null
    if [ "$1" = kernel ] && [ "$(. /etc/os-release && printf '%s' "$ID")" = debian ]; then
        (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-$newest}")
    else
        printf '%s' "$newest"
    fi
}

debian_mirror() { # the mirror that this machine's own apt uses for Debian; nothing elsewhere (mmdebstrap knows one)
    # shellcheck disable=SC2016  # apt expands these
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI) $(CODENAME)' "Created-By: Packages" 2>/dev/null |
        awk '$1 == "Debian" && $2 == "main" && $4 !~ /security/ { print $3; exit }'
}
