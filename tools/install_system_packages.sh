#!/bin/sh
# Installs Debian packages that are missing, as root on Debian; elsewhere says what will be skipped.
set -eu
missing=""
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed (needs root on Debian), so tests that use them are skipped:$missing"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Debian's packages would start their daemons; the tests start their own, in namespaces.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.phenomhpc
chmod +x /usr/sbin/policy-rc.d.phenomhpc
[ -e /usr/sbin/policy-rc.d ] || { mv /usr/sbin/policy-rc.d.phenomhpc /usr/sbin/policy-rc.d; ours=yes; }
# shellcheck disable=SC2086
apt-get install -qq -y --no-install-recommends $missing >/dev/null || failed=yes
[ -z "${ours:-}" ] || rm -f /usr/sbin/policy-rc.d
rm -f /usr/sbin/policy-rc.d.phenomhpc
[ -z "${failed:-}" ]
