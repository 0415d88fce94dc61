#!/usr/bin/env bash
# One machine. The flags are those of launch/train.py:
#     launch/cluster/one_node.sh --data data_shards/<name> --output runs/<name>
#     LAUNCHER=deepspeed GPUS=4 launch/cluster/one_node.sh --config ds_configs/zero2.json ...
#
# LAUNCHER  torchrun (default), deepspeed, accelerate, or python: one process. Same code, same losses.
# GPUS      processes, one on each GPU; all GPUs if not given, and 1 where there is none.
# RESTARTS  how often torchrun brings a run back that has failed; 0 if not given, so that a wrong
#           flag is refused once. Above 0 it wants --output, to find the run again.
#
# SIGTERM or SIGUSR1, to this process, its group, a rank or all of them: the run saves, says so on its
# last line, and ends with status 0. Ctrl-C: the same, with 130; a second one ends it at once.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v torchrun >/dev/null || . .venv/bin/activate

if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then # an empty list hides all of them
    found=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
else
    found=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
fi
gpus=${GPUS:-$((found > 0 ? found : 1))}
# By themselves launchers that are told to stop end in a traceback, and kill what saves for long.
deaf=(python -m meloformer.training.deaf_launcher)

case ${LAUNCHER:-torchrun} in
    python)
        exec python launch/train.py "$@"
        ;;
    torchrun)
        exec "${deaf[@]}" torchrun --standalone --nproc_per_node "$gpus" \
            --max_restarts "${RESTARTS:-0}" launch/train.py "$@"
        ;;
    deepspeed)
        # Its launcher says of each process that it has ended: the last word is the run's.
        # With --num_gpus it forgets CUDA_VISIBLE_DEVICES and takes the machine's first ones.
        which=(--num_gpus "$gpus")
        if [ -n "${CUDA_VISIBLE_DEVICES:-}" ] && [ "$gpus" -le "$found" ]; then
            which=(--include "localhost:$(cut -d , -f "1-$gpus" <<<"$CUDA_VISIBLE_DEVICES")")
        fi
        exec "${deaf[@]}" deepspeed --log_level warning "${which[@]}" launch/train.py "$@"
        ;;
    accelerate)
        # Accelerate starts the processes and no more: precision and compiling are the run's own.
        several=()
        if [ "$gpus" -gt 1 ]; then several=(--multi_gpu); fi
        exec "${deaf[@]}" accelerate launch --num_processes "$gpus" \
            ${several[@]+"${several[@]}"} --num_machines 1 --mixed_precision no \
            --dynamo_backend no launch/train.py "$@"
        ;;
    *)
        echo "error: found LAUNCHER=$LAUNCHER; allowed: python, torchrun, deepspeed, accelerate" >&2
        exit 2
        ;;
esac
