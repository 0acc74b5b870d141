#!/bin/sh
# vm.sh [REGEX]
# End-to-end tests under Debian's own kernel, in a virtual machine: there
# cgroup v2 has its controllers, and Landlock is older.  The machine has this
# one's files, read-only, below a file system in memory; so it runs the
# build/gateway, the python3 and the tests of here.
#
# REGEX chooses tests as run.py's --only does; without it: what of cgroups and
# the cage is to be seen nowhere else.  The kernel is downloaded and unpacked
# into the cache, not installed.  The last line is `N passed, N failed`.
#
# VM_SCRIPT=FILE runs that script instead, to look around; VM_SECONDS is how
# long all of it may take.
set -eu

cd "$(dirname "$0")/.."
only=${1:-cgroup|cage|layers|hostile}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gateway/vm
limit=${VM_SECONDS:-3600}
tests/setup.sh qemu-system-x86_64:qemu-system-x86 busybox:busybox cpio:cpio

if [ ! -e "$cache/kernel/boot" ]; then
  echo "vm: Debian's kernel will be unpacked into $cache"
  package=$(apt-cache depends linux-image-amd64 |
    sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
  mkdir -p "$cache"
  (cd "$cache" && apt-get -qq download "$package" 2>/dev/null)
  rm -rf "$cache/new"
  dpkg-deb -x "$cache/$package"_*.deb "$cache/new"
  rm "$cache/$package"_*.deb
  mv "$cache/new" "$cache/kernel"
fi
kernel=$(ls "$cache"/kernel/boot/vmlinuz-*)
modules=$(ls -d "$cache"/kernel/lib/modules/*/kernel)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/bin" "$work/root/modules"
cp "$(command -v busybox)" "$work/root/bin/busybox"
cp tests/vm-init.sh "$work/root/init"
# in the order in which they need each other
n=10
for name in virtio/virtio_ring virtio/virtio virtio/virtio_pci_modern_dev \
  virtio/virtio_pci_legacy_dev virtio/virtio_pci net/9p/9pnet \
  net/9p/9pnet_virtio fs/netfs/netfs fs/fscache/fscache fs/9p/9p \
  fs/overlayfs/overlay; do
  file=$modules/$name.ko
  [ -e "$file" ] || file=$modules/drivers/$name.ko
  if [ -e "$file" ]; then
    cp "$file" "$work/root/modules/$n-$(basename "$file")"
  fi
  n=$((n + 1))
done
(cd "$work/root" && find . | cpio -o -H newc 2>/dev/null) >"$work/initramfs"

# A /dev/kvm without a processor that can do it is of no use.
accel="-accel tcg,thread=multi -cpu max"
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
  accel="-accel kvm -cpu host"
fi
echo "vm: $(basename "$kernel"), ${accel%% -cpu*}; tests: $only"
# shellcheck disable=SC2086
timeout "$limit" qemu-system-x86_64 $accel -smp 2 -m 3072 -nodefaults \
  -no-reboot -display none -serial stdio -kernel "$kernel" \
  -initrd "$work/initramfs" -virtfs \
  local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
  -append "console=ttyS0 quiet panic=-1 vm_dir=$PWD vm_only=$only \
vm_script=${VM_SCRIPT:-}" </dev/null | tr -d '\r' | tee "$work/log"
tail -n 1 "$work/log" | grep -q '^[0-9]* passed, 0 failed$'
