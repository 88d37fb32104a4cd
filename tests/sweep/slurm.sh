#!/usr/bin/env bash
# Starts a Slurm cluster of one node on this machine, for tests, and prints the path of its slurm.conf.
#
#     tests/sweep/slurm.sh FOLDER
#
# It needs root. In CI (CI=true) it installs Debian's slurm-wlm and munge if they are missing and apt has them. It exits
# with 77, and says why, where Slurm cannot be installed or started. `slurm.sh FOLDER stop` stops the cluster.
set -u
folder=$(mkdir -p "$1" && cd "$1" && pwd)
runs() { ps -e -o stat= -o comm= | grep -v '^Z' | grep -Eq "$1"; }
gone() { for _ in $(seq 150); do runs "$1" || break; sleep 0.2; done; }
stop() {
    # A step that outlives its controller would report to the next one, which then takes the node out of use; and one
    # that is cancelled while it ends waits for a minute.
    export SLURM_CONF=$folder/slurm.conf
    for _ in $(seq 50); do [ "$(timeout 5 squeue -h 2> /dev/null)" ] || break; sleep 0.2; done
    timeout 20 scancel --full --me 2> /dev/null
    gone slurmstepd
    cat "$folder"/*.pid 2> /dev/null | xargs -r kill 2> /dev/null
    gone 'slurmctld|slurmd$'
}
cannot() { echo "no Slurm here: $1" >&2; exit 77; }

[ "${2:-}" != stop ] || { stop; exit; }

! runs slurmctld || cannot "another cluster runs on this machine"
[ "$(id -u)" = 0 ] || cannot "it is started as root only"
if ! { command -v slurmctld && command -v slurmd && command -v munged && command -v sbatch; } > /dev/null; then
    [ "${CI:-}" = true ] || cannot "slurm-wlm and munge are not installed"
    { timeout 60 apt-get update -q && DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -y -q --no-install-recommends slurm-wlm munge
    } > "$folder/apt.log" 2>&1 || cannot "apt has no slurm-wlm and munge"
fi
if ! munge -n > /dev/null 2>&1; then
    [ -s /etc/munge/munge.key ] || mungekey > /dev/null 2>&1
    mkdir -p /run/munge && chown munge: /run/munge
    su munge -s /bin/sh -c /usr/sbin/munged > "$folder/munged.log" 2>&1
    sleep 1
    munge -n > /dev/null 2>&1 || cannot "munged does not start"
fi

name=$(hostname -s)
cat > "$folder/slurm.conf" <<CONF
ClusterName=lmjax
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
JobRequeue=1
ReturnToService=2
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
MinJobAge=600
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$name Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
mkdir -p "$folder/state" "$folder/spool"
export SLURM_CONF=$folder/slurm.conf
slurmctld > "$folder/out.log" 2>&1 || cannot "slurmctld does not start"
slurmd >> "$folder/out.log" 2>&1 || { stop; cannot "slurmd does not start"; }
for _ in $(seq 40); do
    if sinfo -h -o %t 2> /dev/null | grep -q '^\(idle\|mix\)'; then
        echo "$folder/slurm.conf"
        exit 0
    fi
    sleep 0.5
done
stop
cannot "its node does not become ready"
