#!/usr/bin/env bash
# Several machines by the deepspeed launcher, from one of them:
#     HOSTFILE=<file> launch/cluster/deepspeed_nodes.sh --data data_shards/<name> --output runs/<name>
#
# HOSTFILE  a line for each machine, as launch/cluster/hostfile shows.
# NODE_RANK where ssh is forbidden: the same line on each machine, with its place in HOSTFILE,
#           counted from 0; HEAD is then the name of the first.
#
# With ssh, the launcher wants pdsh here and keys for every machine, and this folder at the same path
# there. It hands on few variables of the environment: others (NCCL_SOCKET_IFNAME, HF_HOME) stand in
# ~/.deepspeed_env, a NAME=value on each line. It restarts nothing: after a fault, the same line again.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v deepspeed >/dev/null || . .venv/bin/activate

where=(--hostfile "${HOSTFILE:-launch/cluster/hostfile}")
if [ -n "${NODE_RANK:-}" ]; then
    where+=(--no_ssh --node_rank "$NODE_RANK" --master_addr "$HEAD")
fi
exec deepspeed "${where[@]}" launch/train.py --resume auto "$@"
