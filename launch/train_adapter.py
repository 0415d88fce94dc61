"""Train an adapter: what becomes of a MuseFormer's own summaries and those that a bridge injects.

MuseFormer, text encoder and bridge stay as they are; the adapter learns from the MuseFormer's own
token loss. Each validation says, on the same windows, the nats per token without summaries
(nats_none), with those of the bridge blended in (nats_blend) and by the adapter (nats_adapter):
    python launch/train_adapter.py --bridge runs/<bridge> --checkpoint runs/<base>
    --data data_shards/<name> --targets targets --captions captions.jsonl --output runs/adapter

Several GPUs, by any launcher, under the same ds_configs; Accelerate steps DeepSpeed, with and
without a launcher:
    torchrun --nproc_per_node 2 launch/train_adapter.py --bridge runs/<bridge>
    --checkpoint runs/<base> --data data_shards/<name> --targets targets --captions captions.jsonl

    deepspeed --num_gpus 2 launch/train_adapter.py --config ds_configs/zero2.json
    --bridge runs/<bridge> --checkpoint runs/<base> --data data_shards/<name> --targets targets
    --captions captions.jsonl

Go on with a run that has stopped, with the flags of its start:
    python launch/train_adapter.py ... --output runs/adapter --resume auto

What generates and judges takes it by these flags:
    python launch/generate.py --checkpoint runs/<base> --bridge runs/<bridge> --text "calm piano"
    --strategy adapter --adapter runs/adapter
"""

if __name__ == "__main__":
    from meloformer.interrupts import listen

    listen()  # what follows imports for seconds

from meloformer.bridge_training.adapter import AdapterTrainConfig, prepare_adapter
from meloformer.bridge_training.recipe import prepare_and_train
from meloformer.command_line import run_recipe


def main(flags: AdapterTrainConfig) -> int:
    """Prepare, say what will be done, train."""
    return prepare_and_train(lambda: prepare_adapter(flags))


if __name__ == "__main__":
    run_recipe(main, AdapterTrainConfig)
