#!/bin/sh
# A SLURM of one node on this machine, for tests:  slurm.sh start DIR | slurm.sh stop DIR
# Debian's packages slurm-wlm and munge; installed if this may do so. Needs root.
set -eu
what=$1 dir=$2

if [ "$what" = stop ]; then
  for name in slurmd slurmctld; do
    [ -f "$dir/$name.pid" ] && kill "$(cat "$dir/$name.pid")" 2>/dev/null || true
  done
  exit 0
fi

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  apt-get install -y -qq slurm-wlm munge >"$dir/apt.log" 2>&1
fi
host=$(hostname -s)
cpus=$(nproc)
# munged is particular about who owns what.
mkdir -p /run/munge /etc/munge /var/log/munge /var/lib/munge
[ -f /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null
chown -R munge:munge /run/munge /etc/munge /var/log/munge /var/lib/munge
chmod 700 /etc/munge /var/log/munge /var/lib/munge && chmod 755 /run/munge
chmod 400 /etc/munge/munge.key
munge -n >/dev/null 2>&1 || runuser -u munge -- /usr/sbin/munged --force
mkdir -p "$dir/state" "$dir/spool"
cat >"$dir/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=2
MpiDefault=none
ReturnToService=2
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
mkdir -p /etc/slurm
cp "$dir/slurm.conf" /etc/slurm/slurm.conf
[ -f /sys/fs/cgroup/cgroup.controllers ] && version=v2 || version=v1
printf 'CgroupPlugin=cgroup/%s\n' $version >/etc/slurm/cgroup.conf
slurmctld
slurmd
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  sinfo -h -o %T 2>/dev/null | grep -q idle && exit 0
  sleep 1
done
sinfo >&2 || true
tail -n 5 "$dir/slurmctld.log" "$dir/slurmd.log" >&2
exit 1
