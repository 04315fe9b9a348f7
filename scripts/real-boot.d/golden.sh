# shellcheck shell=bash
# Builds the golden raw image: a small Debian that boots from iSCSI under BIOS and UEFI. Sourced; expects
# say, note and die. Needs no loop device and mounts nothing outside a private mount namespace.

readonly GUEST_PACKAGES=systemd-sysv,udev,linux-image-cloud-amd64,initramfs-tools,open-iscsi,kmod,iproute2,zstd
readonly ROOT_UUID=5b1c9a34-7d0e-4f62-9a0b-60d1e5a7c001
readonly IMAGE_MIB=1024 ROOT_MIB=1014 ESP_START_MIB=1015 ESP_MIB=8
readonly KERNEL_ARGUMENTS="root=UUID=$ROOT_UUID rw net.ifnames=0 console=ttyS0,115200 panic=-1 quiet loglevel=4 \
mitigations=off nokaslr no_timer_check init=/usr/lib/goldrush/init"

# Everything that decides what is in the image. The mirror does not: any mirror of a suite holds the same.
recipe_hash() {
    {
        printf '%s\n' "$SUITE"
        cat "$PARTS/golden.sh" "$PARTS/guest/init" "$PARTS/guest/marker" "$PARTS/guest/real-boot.service"
    } | sha256sum | cut -c1-12
}

# Sets GOLDEN_RAW and GOLDEN_KERNEL.
ensure_golden() {
    local hash log mirror started=$SECONDS
    hash=$(recipe_hash)
    GOLDEN_RAW=$WORK/golden-$hash.raw
    GOLDEN_KERNEL=$WORK/golden-$hash.vmlinuz
    # Two runs in one work directory must not build over each other.
    exec 8>"$WORK/golden.lock"
    flock 8
    if [[ $REBUILD == no && -s $GOLDEN_RAW && -s $GOLDEN_KERNEL ]]; then
        exec 8>&-
        return 0
    fi
    mirror=${MIRROR:-$(apt_mirror "$SUITE")}
    [[ -n $mirror ]] || die "apt on this machine knows no mirror of $SUITE main; name one with --mirror URL"
    log=$WORK/golden.log
    note "building the golden image from $SUITE (some minutes; log: $log)"
    rm -rf "$WORK/golden.build"
    mkdir -p "$WORK/golden.build"
    # The private mount namespace takes every mount with it when the build ends, however it ends.
    unshare --mount --propagation private bash -euo pipefail -c \
        '. "$1/golden.sh"; PARTS=$1; build_golden "$2" "$3" "$4"' \
        build "$PARTS" "$WORK/golden.build" "$SUITE" "$mirror" >"$log" 2>&1 ||
        die "building the golden image failed: '$(tail -n 1 "$log")'; see $log"
    mv "$WORK/golden.build/vmlinuz" "$GOLDEN_KERNEL"
    mv "$WORK/golden.build/golden.raw" "$GOLDEN_RAW"
    rm -rf "$WORK/golden.build"
    # Images of older recipes; a run that began before this one may still hold a young one.
    find "$WORK" -maxdepth 1 -name 'golden-*.*' -mtime +1 -delete
    exec 8>&-
    note "golden image built in $((SECONDS - started)) s: $GOLDEN_RAW"
}

build_golden() { # directory, suite, mirror
    local dir=$1 tree=$1/tree
    # Without an initrd from the kernel's own install: it would be made twice, first with the wrong settings.
    INITRD=No debootstrap --variant=minbase --include="$GUEST_PACKAGES" "$2" "$tree" "$3"
    slim_tree "$tree"
    configure_tree "$tree"
    build_initrd "$tree"
    write_manifest "$tree"
    cp -L "$(only "$tree"/boot/vmlinuz-*)" "$dir/vmlinuz"
    write_grub_config "$tree"
    build_disk "$dir" "$tree"
    rm -rf "$tree"
}

only() { # a glob's matches, of which there must be one
    (($# == 1)) && [[ -e $1 ]] || { echo "expected one file, found: $*" >&2; return 1; }
    printf '%s' "$1"
}

# A boot reads about 60 MB whatever the disk holds; this only makes the image quicker to copy and convert.
slim_tree() {
    local tree=$1 modules
    rm -rf "$tree"/usr/share/{doc,man,info,locale,zoneinfo,i18n,lintian,bug} \
        "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/* "$tree"/var/log/*.log
    modules=$(only "$tree"/lib/modules/*)
    rm -rf "$modules"/kernel/sound \
        "$modules"/kernel/drivers/{gpu,media,infiniband,usb,md,hwmon,iio,staging,isdn,mmc,mtd,nvdimm,platform,power,video} \
        "$modules"/kernel/drivers/net/{ethernet,wireless,usb,can,hamradio,ieee802154,wan,phy} \
        "$modules"/kernel/fs/{btrfs,ceph,cifs,smb,f2fs,gfs2,jfs,nfs,nfsd,nilfs2,ntfs3,ocfs2,reiserfs,ubifs,udf,xfs,orangefs,dlm,afs,9p} \
        "$modules"/kernel/net/{bluetooth,batman-adv,can,ceph,dccp,mac80211,wireless,openvswitch,rds,rxrpc,sctp,sunrpc,tipc,9p}
    chroot "$tree" depmod "${modules##*/}"
}

configure_tree() {
    local tree=$1 unit
    # This alone makes the initramfs load iscsi_ibft, bring up the NIC named in the iBFT and log in.
    echo 'ISCSI_AUTO=true' >"$tree/etc/iscsi/iscsi.initramfs"
    # Any valid name does: the one in the iBFT, set by the iPXE script of each node, wins.
    echo 'InitiatorName=iqn.2026-11.io.goldrush:golden' >"$tree/etc/iscsi/initiatorname.iscsi"
    echo "UUID=$ROOT_UUID / ext4 noatime,errors=remount-ro 0 1" >"$tree/etc/fstab"
    echo golden >"$tree/etc/hostname"
    : >"$tree/etc/machine-id"

    # open-iscsi.service logs in to configured nodes, of which there are none, and when it stops it may log
    # out the session that carries the root disk.
    for unit in open-iscsi.service getty@tty1.service serial-getty@ttyS0.service apt-daily.timer \
        apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
        systemd-networkd-wait-online.service; do
        ln -sf /dev/null "$tree/etc/systemd/system/$unit"
    done
    mkdir -p "$tree/etc/systemd/system/sysinit.target.wants" "$tree/etc/systemd/system/multi-user.target.wants"
    ln -sf /lib/systemd/system/iscsid.service "$tree/etc/systemd/system/sysinit.target.wants/iscsid.service"

    install -D -m 755 "$PARTS/guest/init" "$tree/usr/lib/goldrush/init"
    install -D -m 755 "$PARTS/guest/marker" "$tree/usr/lib/goldrush/marker"
    install -D -m 644 "$PARTS/guest/real-boot.service" "$tree/etc/systemd/system/real-boot.service"
    ln -sf ../real-boot.service "$tree/etc/systemd/system/multi-user.target.wants/real-boot.service"
}

build_initrd() {
    local tree=$1
    mkdir -p "$tree/etc/initramfs-tools/conf.d"
    printf 'MODULES=list\nCOMPRESS=zstd\nRESUME=none\n' >"$tree/etc/initramfs-tools/conf.d/real-boot"
    printf '%s\n' virtio_pci virtio_net sd_mod iscsi_tcp iscsi_ibft crc32c crc32c_generic ext4 \
        >>"$tree/etc/initramfs-tools/modules"
    mount -t proc proc "$tree/proc"
    mount -t sysfs sysfs "$tree/sys"
    mount --bind /dev "$tree/dev"
    chroot "$tree" update-initramfs -c -k all
    umount "$tree/dev" "$tree/sys" "$tree/proc"
}

# The guest checks these at each boot: some hundred files that a boot does not write, 12 MiB at most.
write_manifest() {
    (
        cd "$1"
        find usr/bin usr/sbin usr/lib/x86_64-linux-gnu usr/lib/modules -xdev -type f -size -400k |
            sort | awk 'NR % 3 == 0' |
            xargs -d '\n' stat -c '%s %n' | awk '{ sum += $1 } sum <= 12582912 { print $2 }' |
            xargs -d '\n' sha256sum
    ) >"$1/usr/lib/goldrush/manifest"
    (($(wc -l <"$1/usr/lib/goldrush/manifest") > 100))
}

write_grub_config() {
    local tree=$1 kernel initrd
    kernel=$(only "$tree"/boot/vmlinuz-*)
    initrd=$(only "$tree"/boot/initrd.img-*)
    mkdir -p "$tree/boot/grub"
    cat >"$tree/boot/grub/grub.cfg" <<GRUB
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
echo 'GRUB: loading the kernel'
linux /boot/${kernel##*/} $KERNEL_ARGUMENTS
echo 'GRUB: loading the initrd'
initrd /boot/${initrd##*/}
echo 'GRUB: starting'
boot
GRUB
}

build_disk() { # directory, tree: makes directory/golden.raw
    local dir=$1 tree=$2 raw=$1/golden.raw
    truncate -s "${IMAGE_MIB}M" "$raw"
    sfdisk --quiet "$raw" <<TABLE
label: dos
start=1MiB, size=${ROOT_MIB}MiB, type=83, bootable
start=${ESP_START_MIB}MiB, size=${ESP_MIB}MiB, type=ef
TABLE
    # GRUB 2.06 reads no file system with these two features.
    mke2fs -q -F -t ext4 -d "$tree" -U "$ROOT_UUID" -m 0 -O '^metadata_csum_seed,^orphan_file' \
        -E offset=1048576,lazy_itable_init=0,lazy_journal_init=0 "$raw" "${ROOT_MIB}M"

    # BIOS: boot.img's last bytes are where the partition table lies, so 440 bytes of it; core.img in the
    # gap before the first partition.
    grub-mkimage -O i386-pc -o "$dir/core.img" -p '(hd0,msdos1)/boot/grub' \
        biosdisk part_msdos ext2 normal linux serial terminal echo configfile boot
    (($(stat -c %s "$dir/core.img") < 1048576 - 512))
    dd if=/usr/lib/grub/i386-pc/boot.img of="$raw" bs=440 count=1 conv=notrunc status=none
    dd if="$dir/core.img" of="$raw" bs=512 seek=1 conv=notrunc status=none

    # UEFI: one file in the ESP, which looks for the root file system by its UUID.
    cat >"$dir/early.cfg" <<EARLY
search.fs_uuid $ROOT_UUID root
set prefix=(\$root)/boot/grub
EARLY
    grub-mkimage -O x86_64-efi -o "$dir/bootx64.efi" -p /boot/grub -c "$dir/early.cfg" \
        part_msdos fat ext2 search search_fs_uuid normal linux serial terminal echo configfile boot
    truncate -s "${ESP_MIB}M" "$dir/esp.img"
    mformat -i "$dir/esp.img" -v ESP ::
    mmd -i "$dir/esp.img" ::/EFI ::/EFI/BOOT
    mcopy -i "$dir/esp.img" "$dir/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
    dd if="$dir/esp.img" of="$raw" bs=1M seek="$ESP_START_MIB" conv=notrunc,sparse status=none
}
