#!/usr/bin/env bash
# Start one machine's part of a run on several: torchrun on each of them, all of which meet at the first.
#
#   nodes.sh PROCESSES_PER_NODE SCRIPT.py OPTIONS…
#
# In a SLURM job (srun --ntasks-per-node 1) the machines are those of the job. Elsewhere say how many there are (NODES),
# which this is (NODE, from 0), and the address of the first (MASTER). PORT is where they meet.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: [NODES=n NODE=i MASTER=address PORT=port] $0 PROCESSES_PER_NODE SCRIPT.py OPTIONS…" >&2
    exit 2
fi
processes=$1
shift

if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    NODES=$SLURM_NNODES
    NODE=$SLURM_NODEID
    MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi

exec torchrun --nnodes "${NODES:-1}" --node_rank "${NODE:-0}" --nproc_per_node "$processes" \
    --master_addr "${MASTER:-127.0.0.1}" --master_port "${PORT:-29500}" "$@"
