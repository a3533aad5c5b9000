#!/usr/bin/env bash
# A base image for the Dockerfile where no image registry is reachable: Debian as debootstrap gives it, and the Python
# that runs here under /usr/local, which is what python:3.11-slim-trixie is made of. Needs root, debootstrap and buildah.
#   deploy/base_image.sh NAME [PYTHON]
set -euo pipefail
name=$1
python=${2:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

debootstrap --variant=minbase \
    --include=ca-certificates,libbz2-1.0,libexpat1,libffi8,liblzma5,libreadline8t64,libsqlite3-0,libssl3t64,libuuid1,zlib1g \
    trixie "$folder" >&2
rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/* "$folder"/usr/share/{doc,man,locale}

prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
tar -C "$prefix" --exclude='*/test' --exclude='*/config-*' --exclude='*/site-packages/*' --exclude='__pycache__' -c \
    "bin/$version" bin/python3 bin/python "lib/$version" $(cd "$prefix" && ls -d lib/lib"$version"*.so* lib/libpython3.so include) |
    tar -C "$folder/usr/local" -x
chroot "$folder" ldconfig
chroot "$folder" python3 -m ensurepip >&2
# What pip needs here to reach its index (a proxy's certificates, say), it needs in there too.
cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$folder/etc/ssl/certs/ca-certificates.crt"

container=$(buildah from scratch)
buildah add --quiet "$container" "$folder" / >&2
buildah config --cmd python3 "$container"
buildah commit --quiet --rm "$container" "$name"
