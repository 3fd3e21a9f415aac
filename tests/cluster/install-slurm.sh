#!/bin/bash
# SLURM's programs for a bare Debian 12: install-slurm.sh [--accounting]
#
# With --accounting also what keeps the records that `sacct` reads. Nothing is started and
# nothing is set up: start.sh does that. Root only. A second call does nothing.
set -euo pipefail

packages=(slurm-wlm munge)
case ${1:-} in
  --accounting) packages+=(slurmdbd mariadb-server) ;;
  '') ;;
  *) echo "usage: install-slurm.sh [--accounting]" >&2 && exit 2 ;;
esac

stop() {
  echo "install-slurm: $*" >&2
  exit 1
}

[ "$(id -u)" = 0 ] || stop "only root can install it"
(. /etc/os-release && [ "$ID" = debian ] && [ "$VERSION_ID" = 12 ]) || stop "made for Debian 12"

# One at a time.
exec 9>/run/lock/tokencache-slurm
flock 9
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  apt-get -q update
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}"
fi
slurmctld -V
