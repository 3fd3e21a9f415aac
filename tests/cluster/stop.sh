#!/bin/bash
# Stops the cluster that start.sh started, with its jobs: stop.sh [--remove] [FOLDER]
#
# Its folder stays, and start.sh goes on from there; --remove deletes it. A second call does
# nothing.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/cluster.sh"

remove=false
if [ "${1:-}" = --remove ]; then
  remove=true
  shift
fi
choose "$@"

[ "$(id -u)" = 0 ] || stop "only root can stop it"
[ -d "$folder" ] || exit 0
grep -qsx ClusterName=tokencache "$folder/slurm.conf" || stop "$folder is not a cluster of start.sh"
exec 9>"$folder/lock"
flock 9

# The daemons of nodes end what is left of their jobs' steps, which would outlive them.
if runs "$folder/run/slurmctld.pid" slurmctld; then
  scancel --user root 2>/dev/null || true
  until_true 15 "" no_jobs || true
fi
for pid in $(daemons); do
  kill "$pid" 2>/dev/null || true
done
until_true 20 "" none_left || kill -9 $(daemons)
[ "$(readlink "$installed")" != "$folder/slurm.conf" ] || rm "$installed"
if $remove; then rm -rf "$folder"; fi
