#!/bin/sh
# rootfs.sh FOLDER PACKAGE...
# Lays out a root file system from Debian packages, with their files alone: no shell,
# no package manager, nothing is configured. Runs on Debian 12, in the Dockerfiles and
# in `cargo xtask images` alike. What a scanner looks for lies in /var/lib/dpkg/status.d.
set -eu
root=$1
shift
debs=$(mktemp -d)
trap 'rm -rf "$debs"' EXIT
# apt-get downloads as a user of its own.
chmod 755 "$debs"
(cd "$debs" && apt-get -o APT::Sandbox::User=root download -qq "$@")

mkdir -p "$root/var/lib/dpkg/status.d"
for deb in "$debs"/*.deb; do
    dpkg-deb --extract "$deb" "$root"
    dpkg-deb --field "$deb" > "$root/var/lib/dpkg/status.d/$(dpkg-deb --field "$deb" Package)"
done

# What ca-certificates does when it is configured.
if [ -d "$root/usr/share/ca-certificates/mozilla" ]; then
    mkdir -p "$root/etc/ssl/certs"
    cat "$root"/usr/share/ca-certificates/mozilla/*.crt > "$root/etc/ssl/certs/ca-certificates.crt"
fi

# Nothing of this is used by a program that runs alone. Licences stay.
(
    cd "$root"
    rm -rf usr/share/man usr/share/locale usr/share/lintian usr/share/bug usr/share/base-files
    rm -rf usr/share/ca-certificates usr/sbin etc/ca-certificates etc/update-motd.d etc/profile.d etc/skel
    rm -rf usr/lib/*-linux-gnu/gconv usr/lib/*-linux-gnu/audit lib/*-linux-gnu/gconv lib/*-linux-gnu/audit
    rm -rf usr/share/gcc usr/share/gdb
    find usr/share/doc -type f ! -name copyright -delete 2>/dev/null || true
)

cat > "$root/etc/passwd" <<USERS
root:x:0:0:root:/root:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin
USERS
cat > "$root/etc/group" <<GROUPS
root:x:0:
nonroot:x:65532:
GROUPS
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
mkdir -p "$root/home/nonroot" "$root/tmp"
chmod 1777 "$root/tmp"
chown 65532:65532 "$root/home/nonroot"
