# shellcheck shell=bash
# Host packages of scripts/real-boot. Sourced; expects say, note and die.

# The four that must come from one suite: QEMU's firmware and its common files are matched by version.
readonly QEMU_PACKAGES=(qemu-system-x86 qemu-system-common seabios ovmf)
readonly BOOT_PACKAGES=(ipxe-qemu)
readonly BUILD_PACKAGES=(
    debootstrap e2fsprogs fdisk grub-common grub-pc-bin grub-efi-amd64-bin mtools zstd
)

# The source entry this script may add. apt itself gives backports priority 100, so the entry
# upgrades nothing that is not asked for with -t.
readonly BACKPORTS_ENTRY=/etc/apt/sources.list.d/goldrush-real-boot-backports.list

installed() {
    local state
    state=$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) || return 1
    [[ $state == installed ]]
}

missing_of() {
    local package
    for package in "$@"; do
        installed "$package" || printf '%s\n' "$package"
    done
}

codename() {
    (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
}

# The mirror this machine already trusts for its own suite; no host is written down here.
apt_mirror() {
    local suite=$1
    apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$suite" '$1 == suite && $2 == "main" { print $3; exit }'
}

apt_quiet() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >>"$WORK/apt.log" 2>&1
}

# apt's index may be absent (a fresh machine) or old; refresh it once per run at most.
apt_refreshed=no
apt_refresh() {
    [[ $apt_refreshed == no ]] || return 0
    apt_quiet update ||
        die "apt-get update failed on this machine; see $WORK/apt.log, mend the apt sources, run again"
    apt_refreshed=yes
}

# Would apt install these beside what is there, removing nothing? A simulation knows; we do not guess
# from version numbers.
apt_fits() {
    apt-get -s -q --no-remove --no-install-recommends "$@" >>"$WORK/apt.log" 2>&1
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_of "$@")
    ((${#missing[@]})) || return 0
    note "installing ${missing[*]}"
    apt_refresh
    apt_quiet install --no-remove --no-install-recommends "${missing[@]}" ||
        die "apt could not install ${missing[*]}; see $WORK/apt.log"
}

# Plain bookworm has QEMU 7.2. Where another part of QEMU (qemu-utils, say) is already there from
# backports, 7.2 does not install beside it without removing that part, so take the whole set from backports.
install_qemu() {
    local missing suite mirror
    mapfile -t missing < <(missing_of "${QEMU_PACKAGES[@]}")
    ((${#missing[@]})) || return 0
    apt_refresh
    if apt_fits install "${QEMU_PACKAGES[@]}"; then
        note "installing ${missing[*]}"
        apt_quiet install --no-remove --no-install-recommends "${QEMU_PACKAGES[@]}" ||
            die "apt could not install ${missing[*]}; see $WORK/apt.log"
        return 0
    fi
    suite=$(codename)-backports
    if [[ -z $(apt_mirror "$suite") ]]; then
        mirror=$(apt_mirror "$(codename)")
        [[ -n $mirror ]] ||
            die "no apt source for $(codename) main on this machine, so $suite cannot be derived; add one"
        note "QEMU of $(codename) does not fit beside what is installed: adding $suite in $BACKPORTS_ENTRY"
        printf 'deb %s %s main\n' "$mirror" "$suite" >"$BACKPORTS_ENTRY"
        apt_refreshed=no
        apt_refresh
    fi
    note "installing ${missing[*]} from $suite"
    apt_quiet install --no-remove --no-install-recommends -t "$suite" "${QEMU_PACKAGES[@]}" ||
        die "apt could not install ${missing[*]} from $suite; see $WORK/apt.log"
}

# tgt would start its daemon on port 3260 when installed, and again at each boot of this machine. We
# start our own on our own port, so the package's service stays off.
install_tgt() {
    local policy=/usr/sbin/policy-rc.d ours=no
    installed tgt && return 0
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        ours=yes
    fi
    # A subshell, so that a failed install still removes our policy file.
    local failed=no
    (install_packages tgt) || failed=yes
    [[ $ours == no ]] || rm -f "$policy"
    [[ $failed == no ]] || exit 1
    note "tgt is installed with its own service off ('systemctl enable --now tgt' turns it on)"
    if command -v systemctl >/dev/null; then
        systemctl disable tgt.service >>"$WORK/apt.log" 2>&1 || true
    fi
}

install_host_packages() {
    [[ -r /etc/debian_version ]] || die "this is no Debian machine; run it on Debian 12"
    command -v apt-get >/dev/null || die "apt-get is not on this machine; run it on Debian 12"
    install_qemu
    install_packages "${BOOT_PACKAGES[@]}" "${BUILD_PACKAGES[@]}"
    [[ $TARGET != tgt ]] || install_tgt
}
