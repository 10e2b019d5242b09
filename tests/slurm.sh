#!/bin/bash
# A SLURM of one node on this machine, for tests: slurm.sh start FOLDER | slurm.sh stop FOLDER
#
# Its configuration, key, state, sockets and logs are in FOLDER and it listens on ports that nobody
# used, so it is in nobody's way. Commands find it by SLURM_CONF=FOLDER/slurm.conf. Where SLURM is
# missing, root gets Debian's packages. Without accounting, as a small cluster: no sacct.
set -eu

install() {
  command -v slurmctld slurmd munged sbatch >/dev/null && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "SLURM is not installed: apt-get install slurm-wlm munge" >&2
    return 1
  fi
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y slurm-wlm munge; } >&2 || true
  if ! command -v slurmctld slurmd munged sbatch >/dev/null; then
    echo "SLURM is not installed, and apt-get could not" >&2
    return 1
  fi
}

free_ports() {
  python3 -c '
import socket
held = [socket.create_server(("", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in held))'
}

configure() {
  local folder=$1 ports cpus host
  read -r -a ports <<<"$(free_ports)"
  cpus=$(nproc)
  host=$(hostname -s)
  mkdir -p "$folder/state" "$folder/spool"
  chmod 700 "$folder"
  dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
  chmod 600 "$folder/munge.key"
  cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: two minutes if nothing is said.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

start() {
  local folder=$1
  install
  configure "$folder"
  export SLURM_CONF=$folder/slurm.conf
  # --force: munged wants a socket that all users reach, and this one is for one.
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
    --seed-file="$folder/munged.seed" >&2
  slurmctld -f "$SLURM_CONF" >&2
  slurmd -f "$SLURM_CONF" >&2
  for _ in $(seq 30); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && return
    sleep 1
  done
  echo "SLURM did not come up: $(sinfo 2>&1 | tail -n 1) $(tail -q -n 3 "$folder"/slurm*.log)" >&2
  stop "$folder"
  return 1
}

running() { # a zombie does not
  local state
  state=$(ps -o state= -p "$1" 2>/dev/null) && [ "${state:0:1}" != Z ]
}

stop() {
  local folder=$1 name pid
  export SLURM_CONF=$folder/slurm.conf
  scancel --user="$(id -un)" 2>/dev/null || true
  # A job's own daemon stays for ever if nobody is left to whom it can say that it has ended.
  for _ in $(seq 40); do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.5
  done
  for name in slurmd slurmctld munged; do
    [ -f "$folder/$name.pid" ] || continue
    pid=$(cat "$folder/$name.pid")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 20); do
      running "$pid" || break
      sleep 0.5
    done
  done
}

if [ $# != 2 ] || { [ "$1" != start ] && [ "$1" != stop ]; }; then
  echo "usage: slurm.sh start|stop FOLDER" >&2
  exit 2
fi
"$1" "$(realpath -m "$2")"
