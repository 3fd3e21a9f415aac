#!/bin/bash
# A SLURM cluster on this one machine: start.sh [--accounting] [FOLDER]
#
# Nodes n1 and n2 in the partition cpu, g1 with one make-believe GPU in the partition gpu, each
# a slurmd of its own that says it has 4 CPUs and 8 GB. Settings, state, logs and keys are in
# FOLDER (default /opt/tokencache-cluster) and nowhere else, but for the link
# /etc/slurm/slurm.conf, where jobs look for it. Starts what does not run, so a second call does
# nothing, and a call after a daemon was killed brings that one back.
#
# With --accounting the cluster keeps the records that `sacct` reads. Without, as on many small
# clusters, `sacct` is there and answers nothing.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/cluster.sh"

accounting=false
if [ "${1:-}" = --accounting ]; then
  accounting=true
  shift
fi
choose "$@"

[ "$(id -u)" = 0 ] || stop "only root can start it"
for program in slurmctld slurmd munged; do
  command -v "$program" >/dev/null || stop "there is no $program; install-slurm.sh installs it"
done
if $accounting && ! command -v slurmdbd >/dev/null; then
  stop "there is no slurmdbd; install-slurm.sh --accounting installs it"
fi
if [ -e "$installed" ] || [ -L "$installed" ]; then
  [ "$(readlink "$installed")" = "$folder/slurm.conf" ] ||
    stop "$installed is another cluster's; this machine belongs to that one"
fi

# One at a time; the daemons do not get the lock.
mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9

write_settings() {
  local storage=accounting_storage/none
  $accounting && storage=accounting_storage/slurmdbd
  mkdir -p "$folder"/{log,run,state,spool}
  cat >"$folder/slurm.conf.new" <<END
ClusterName=tokencache
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
SlurmctldPort=16820
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmdLogFile=$folder/log/slurmd-%n.log
SlurmdSpoolDir=$folder/spool/%n
StateSaveLocation=$folder/state
AccountingStorageType=$storage
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStorageUser=root
# For munge, this is where its socket is.
AccountingStoragePass=$folder/munge/socket

# Nodes may say that they have more than the machine.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
# The next job goes to the node with the least to do.
SelectTypeParameters=CR_Core_Memory,CR_LLN

# A job over its memory is killed within a second or so.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill

SlurmdTimeout=10
KillWait=2
MinJobAge=300
DefMemPerCPU=1000
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0

GresTypes=gpu
NodeName=n[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[16821-16822] CPUs=4 RealMemory=8000
NodeName=g1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=16823 CPUs=4 RealMemory=8000 Gres=gpu:1
PartitionName=cpu Nodes=n[1-2] Default=YES MaxTime=1-0
PartitionName=gpu Nodes=g1 MaxTime=1-0
END
  echo "NodeName=g1 Name=gpu Count=1 File=/dev/null" >"$folder/gres.conf"
  if ! cmp -s "$folder/slurm.conf.new" "$folder/slurm.conf" && [ -n "$(daemons)" ]; then
    rm "$folder/slurm.conf.new"
    stop "the cluster runs with other settings than these; stop.sh stops it"
  fi
  mv "$folder/slurm.conf.new" "$folder/slurm.conf"
  mkdir -p "$(dirname "$installed")"
  ln -sfn "$folder/slurm.conf" "$installed"
}

start_munge() {
  runs "$folder/munge/pid" munged && return
  mkdir -p -m 755 "$folder/munge"
  [ -e "$folder/munge/key" ] || mungekey --create --keyfile "$folder/munge/key"
  munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" \
    --pid-file "$folder/munge/pid" --log-file "$folder/munge/log" --seed-file "$folder/munge/seed" \
    9>&-
}

start_database() {
  local data=$folder/database/data
  if ! runs "$folder/database/pid" mariadbd; then
    if [ ! -d "$data/mysql" ]; then
      mkdir -p "$data"
      mariadb-install-db --no-defaults --user=root --datadir="$data" \
        --auth-root-authentication-method=socket --skip-test-db >"$folder/log/database.log"
    fi
    setsid mariadbd --no-defaults --user=root --datadir="$data" --bind-address=127.0.0.1 \
      --port=16818 --socket="$folder/database/socket" --pid-file="$folder/database/pid" \
      --innodb-lock-wait-timeout=900 >>"$folder/log/database.log" 2>&1 9>&- </dev/null &
  fi
  until_true 60 "the database does not answer" sql "select 1"
  [ -e "$folder/slurmdbd.conf" ] && return
  local password
  password=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
  sql "create or replace user slurm@127.0.0.1 identified by '$password';
       grant all on slurm_acct_db.* to slurm@127.0.0.1"
  (
    umask 077
    cat >"$folder/slurmdbd.conf.new" <<END
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16818
StorageUser=slurm
StoragePass=$password
END
  )
  mv "$folder/slurmdbd.conf.new" "$folder/slurmdbd.conf"
}

sql() {
  mariadb --no-defaults --socket="$folder/database/socket" --execute "$1" >/dev/null 2>&1
}

start_accounting() {
  start_database
  # It looks for its settings beside those of SLURM.
  runs "$folder/run/slurmdbd.pid" slurmdbd || SLURM_CONF=$folder/slurm.conf slurmdbd 9>&-
  until_true 60 "slurmdbd does not answer; see $folder/log/slurmdbd.log" sacctmgr -n list cluster
  [ -n "$(sacctmgr -n list cluster tokencache)" ] || sacctmgr -i add cluster tokencache >/dev/null
}

idle() {
  ! sinfo --noheader --format %T 2>/dev/null | grep -qvE '^(idle|mixed|allocated|completing)$' &&
    [ -n "$(sinfo --noheader)" ]
}

# What runs with accounts goes on with them.
if runs "$folder/run/slurmdbd.pid" slurmdbd; then accounting=true; fi
write_settings
start_munge
if $accounting; then start_accounting; fi
runs "$folder/run/slurmctld.pid" slurmctld || slurmctld -f "$folder/slurm.conf" 9>&-
for node in n1 n2 g1; do
  runs "$folder/run/slurmd-$node.pid" slurmd ||
    slurmd -f "$folder/slurm.conf" -N "$node" 9>&-
done
until_true 60 "not all nodes came up; see $folder/log" idle
sinfo
