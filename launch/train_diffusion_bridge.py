"""Train a Diffusion Bridge: a flow from noise to a MuseFormer's summaries, under a text.

One process; --text_encoder minilm needs no hub (pip install 'meloformer[minilm]'):
    python launch/train_diffusion_bridge.py --targets targets/<name> --captions captions.jsonl
    --text_encoder minilm --output runs/diffusion-bridge

Several GPUs, by any launcher, under the same ds_configs; Accelerate steps DeepSpeed, with and
without a launcher:
    torchrun --nproc_per_node 2 launch/train_diffusion_bridge.py --targets targets/<name>
    --captions captions.jsonl

    deepspeed --num_gpus 2 launch/train_diffusion_bridge.py --config ds_configs/zero2.json
    --targets targets/<name> --captions captions.jsonl

Go on with a run that has stopped, with the flags of its start:
    python launch/train_diffusion_bridge.py ... --output runs/diffusion-bridge --resume auto

launch/inference_diffusion_bridge.py turns a text into summaries with it.
"""

if __name__ == "__main__":
    from meloformer.interrupts import listen

    listen()  # what follows imports for seconds

from meloformer.bridge_training.diffusion_bridge import DiffusionBridgeTrainConfig
from meloformer.bridge_training.prepare import prepare
from meloformer.bridge_training.recipe import prepare_and_train
from meloformer.command_line import run_recipe


def main(flags: DiffusionBridgeTrainConfig) -> int:
    """Prepare, say what will be done, train."""
    return prepare_and_train(lambda: prepare(flags, flags.kind))


if __name__ == "__main__":
    run_recipe(main, DiffusionBridgeTrainConfig)
