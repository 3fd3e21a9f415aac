# What start.sh and stop.sh share.
installed=/etc/slurm/slurm.conf

stop() {
  echo "$(basename "$0" .sh): $*" >&2
  exit 1
}

# The cluster's folder, from what is left of the command line.
choose() {
  case $#${1:-} in
    0* | 1[!-]*) ;;
    *) stop "it says at its top how it is called" ;;
  esac
  folder=$(readlink -m "${1:-${TOKENCACHE_CLUSTER:-/opt/tokencache-cluster}}")
}

# Whether a pid file names a process of that program that runs: one that was killed and that
# nobody has waited for yet has a name, but no program.
runs() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -e "/proc/$pid/exe" ] &&
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ]
}

# The cluster's daemons that run, the nodes first: each with its pid file.
daemons() {
  local file program
  for file in "$folder"/run/slurmd-*.pid "$folder"/run/{slurmctld,slurmdbd}.pid \
    "$folder"/database/pid "$folder"/munge/pid; do
    case $file in
      */slurmd-*) program=slurmd ;;
      */database/*) program=mariadbd ;;
      */munge/*) program=munged ;;
      *) program=$(basename "$file" .pid) ;;
    esac
    runs "$file" "$program" && cat "$file"
  done
  return 0
}

no_jobs() {
  [ -z "$(squeue --noheader 2>/dev/null)" ]
}

none_left() {
  [ -z "$(daemons)" ]
}

# until_true SECONDS MESSAGE COMMAND…: waits for it, or stops with the message, if there is one.
until_true() {
  local seconds=$1 message=$2
  shift 2
  for _ in $(seq $((seconds * 5))); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  [ -z "$message" ] || stop "$message"
  return 1
}
