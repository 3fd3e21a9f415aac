#!/bin/bash
# A real Apptainer for a bare Debian 12, which has none: install-apptainer.sh [FOLDER]
#
# Debian sid's package, with the newer libc it needs, in FOLDER (default /opt/apptainer) and
# nowhere else; from Debian 12 come the tools it calls. Root only. A second call does nothing.
set -euo pipefail

prefix=${1:-/opt/apptainer}
libraries=$prefix/usr/lib/x86_64-linux-gnu
program=$prefix/usr/bin/apptainer
tools=(patchelf squashfs-tools squashfuse uidmap fuse-overlayfs mmdebstrap)
packages=(apptainer libc6 libseccomp2 libsqlite3-0 libgcc-s1)

stop() {
  echo "install-apptainer: $*" >&2
  exit 1
}

# apt with an index of sid, from the mirror of this machine's own sources, beside its own one.
sid() {
  apt-get -q -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o "Dir::State::Lists=$work/lists" -o Dir::Etc::Preferences=/dev/null \
    -o Dir::Etc::PreferencesParts=/dev/null "$@"
}

unpack() {
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(CODENAME)' 'Created-By: Packages' |
    awk '$2 == "Debian" && $3 == "bookworm" { print $1; exit }')
  [ -n "$mirror" ] || stop "this machine's apt sources name no mirror of Debian 12; add one"
  local key=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$key] $mirror sid main" >"$work/sources.list"
  mkdir -p "$work/lists/partial" "$work/packages"
  # apt reads as its own user, who may not look into a folder of root's.
  chmod -R a+rX "$work"
  sid update
  (cd "$work/packages" && sid -o APT::Sandbox::User=root download "${packages[@]}")
  rm -rf "$prefix"
  mkdir -p "$prefix"
  for package in "$work"/packages/*.deb; do
    dpkg -x "$package" "$prefix"
  done
}

# Bound to the libraries beside them. RPATH, as those look for each other by it too.
bind_to_libraries() {
  for file in "$program" "$libraries/apptainer/bin/starter"; do
    patchelf --set-interpreter "$libraries/ld-linux-x86-64.so.2" "$file"
    patchelf --force-rpath --set-rpath "$libraries" "$file"
  done
}

# What it looks for beside its program.
lay_out() {
  cp -a "$prefix/etc" "$prefix/usr/etc"
  ln -s ../etc "$prefix/usr/lib/etc"
  mkdir -p "$prefix"/usr/{var/lib,lib/var/lib}/apptainer/mnt/session
  # Root of a machine that lacks a capability can't pass all of them on.
  sed -i 's/^root default capabilities = .*/root default capabilities = no/' \
    "$prefix/usr/etc/apptainer/apptainer.conf"
  ln -s apptainer "$prefix/usr/bin/singularity"
}

[ "$(id -u)" = 0 ] || stop "only root can install it"
[ "$(uname -m)" = x86_64 ] || stop "made for x86_64, this is $(uname -m)"
(. /etc/os-release && [ "$ID" = debian ] && [ "$VERSION_ID" = 12 ]) || stop "made for Debian 12"

# One at a time. The mark comes last, so that a broken installation is made anew.
mkdir -p "$(dirname "$prefix")"
exec 9>"$prefix.lock"
flock 9
if [ ! -e "$prefix/installed" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  missing=()
  for tool in "${tools[@]}"; do
    dpkg-query -W -f '${Status}' "$tool" 2>/dev/null | grep -q 'ok installed' || missing+=("$tool")
  done
  apt-get -q update
  if [ ${#missing[@]} -gt 0 ]; then
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}"
  fi
  unpack
  bind_to_libraries
  lay_out
  "$program" --version >"$work/version" || stop "$program does not start"
  mv "$work/version" "$prefix/installed"
fi
echo "$(cat "$prefix/installed") in $prefix/usr/bin"
