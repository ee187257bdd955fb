#!/bin/sh
# The file system of the image: the program, the libraries that it is linked with, the public authorities. No shell, no package manager.
set -eu
usage="usage: deploy/image.sh PROGRAM DIRECTORY"
program=${1:?$usage}
root=${2:?$usage}
authorities=/etc/ssl/certs/ca-certificates.crt
[ -r "$authorities" ] || { echo "$authorities is missing: install the package ca-certificates" >&2; exit 1; }
install -D -m 0755 "$program" "$root/usr/local/bin/onceflow"
install -D -m 0644 "$authorities" "$root$authorities"
# Lines are "name => /path (address)", or the path of the loader alone.
libraries=$(ldd "$program" | grep -o '/[^ ]*')
for library in $libraries; do
  install -D -m 0755 "$library" "$root$library"
done
