#!/bin/busybox sh
# Process 1 of the machine that tests/vm.sh starts: mounts the files of the
# host with a file system in memory above them, and runs the tests there.
b=/bin/busybox
$b mkdir -p /proc /sys /host /over /new
$b mount -t proc proc /proc
for module in /modules/*; do
  $b insmod "$module"
done
for word in $($b cat /proc/cmdline); do
  case $word in
    vm_dir=*) dir=${word#*=} ;;
    vm_only=*) only=${word#*=} ;;
    vm_script=*) script=${word#*=} ;;
  esac
done
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose \
  host /host
$b mount -t tmpfs -o mode=755 over /over
$b mkdir /over/up /over/work
$b mount -t overlay -o lowerdir=/host,upperdir=/over/up,workdir=/over/work \
  over /new
cd /new || $b poweroff -f
$b mount --bind /host/usr usr
# A gateway looks at every program that there is, and each look is a message to
# the host: so there are only those that tests use.
names="sh dash bash env cat sleep true false id tail head sed grep ls mkdir rm cp
mv ln chmod chown stat od awk cut sort tr wc tee touch date dd find xargs uname ps
kill mktemp timeout nice nproc echo printf test basename dirname readlink realpath
cmp diff expr seq setpriv unshare nsenter bwrap mount umount strace curl openssl
python3 cc gcc as ld busybox git ssh tar gzip zip rsync make perl xz"
$b mount -t tmpfs -o mode=755 none mnt
for name in $names; do
  $b chroot . /usr/bin/busybox cp -L "/usr/bin/$name" /mnt 2>/dev/null
done
$b mount --move mnt usr/bin
$b mount -t tmpfs -o mode=755 none usr/sbin
$b mount -t proc proc proc
$b mount -t sysfs sys sys
$b mount -t devtmpfs dev dev
$b mkdir -p dev/shm dev/pts
$b mount -t devpts pts dev/pts
$b mount -t tmpfs -o mode=1777 shm dev/shm
$b mount -t tmpfs -o mode=755 run run
$b mount -t cgroup2 cgroup sys/fs/cgroup
echo "+memory +pids" >sys/fs/cgroup/cgroup.subtree_control
$b ifconfig lo up
# not chroot: who is in one may make no user namespace
exec $b switch_root . /bin/sh -c 'ulimit -n 4096
  export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run E2E_SLOW=8
  cd "$1"
  if [ "$3" ]; then
    sh "$3"
  else
    python3 tests/e2e/run.py --bin build/gateway --jobs 1 --only "$2"
  fi
  busybox poweroff -f' sh "$dir" "$only" "$script" 2>&1
