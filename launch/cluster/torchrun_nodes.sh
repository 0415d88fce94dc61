#!/usr/bin/env bash
# Several machines, and no scheduler. The same line on each of them, in any order:
#     HEAD=<name or address of one of them> NODES=2 GPUS=8 launch/cluster/torchrun_nodes.sh \
#         --data data_shards/<name> --output runs/<name>
# slurm.sbatch and kubernetes.yaml come here too.
#
# HEAD      where the agents meet.
# NODES     machines; 2:4 goes on with two of four: an optimizer step keeps its rows on any number.
# GPUS      processes on this machine, one on each GPU.
# PORT      on HEAD; RUN_ID  two runs that meet on one port want two.
# RESTARTS  how often a failed rank brings all ranks back from the newest intact checkpoint.
# TRIES     how often an agent is started that fails itself, as where it cannot reach HEAD any more;
#           SETTLED  only if the first one has lived so many seconds: a wrong flag is soon refused.
# NODE_RANK where names and addresses do not tell which machine is HEAD: 0 there, not 0 elsewhere.
#
# --data and --output lie on a disk that all machines share.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v torchrun >/dev/null || . .venv/bin/activate

port=${PORT:-29400}
meeting=(--rdzv_backend c10d --rdzv_endpoint "$HEAD:$port" --rdzv_id "${RUN_ID:-meloformer}")
node=${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:-}}}
if [ -n "$node" ]; then
    meeting+=(--rdzv_conf "is_host=$([ "$node" = 0 ] && echo 1 || echo 0)")
fi

# After SIGTERM, seconds in which ranks may end their step and save, before SIGKILL.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}

# A rank that was stopped, and has saved, says so: a machine that is taken away stops the ranks of all,
# and the agents of the others start theirs again instead of taking this for the end of the run.
export MELOFORMER_STOPPED_STATUS=${MELOFORMER_STOPPED_STATUS:-75}

# Otherwise agents that stay keep the store of their first meeting, and one that comes later asks in
# vain where it is: all of them end after a minute (torch 2.13, DynamicRendezvousHandler).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

is_stopped=no
agent=
stop() {
    is_stopped=yes
    [ -n "$agent" ] || return 0 # it is about to start, and is told then
    kill -TERM "$agent" 2>/dev/null || exit 143 # between two agents
}
trap stop TERM INT

for ((try = 1; ; try++)); do
    agent=
    # An agent that is started anew counts its restarts from 0, and so do agents that others join:
    # only --resume auto, given here, goes on in each of these cases. An absent folder starts a run.
    torchrun --nnodes "$NODES" --nproc_per_node "$GPUS" --max_restarts "${RESTARTS:-3}" \
        "${meeting[@]}" launch/train.py --resume auto "$@" &
    agent=$!
    if [ "$is_stopped" = yes ]; then stop; fi
    status=0
    wait "$agent" || status=$?
    if [ "$is_stopped" = yes ]; then
        status=0
        wait "$agent" || status=$? # the first one ended with the signal
    fi
    if [ "$status" = 0 ] || [ "$is_stopped" = yes ] || [ "$try" -ge "${TRIES:-10}" ] ||
        [ "$SECONDS" -lt "${SETTLED:-120}" ]; then
        exit "$status"
    fi
    echo "the agent ended with status $status; another one starts in 10 s" >&2
    sleep 10 &
    wait $! || true
done
