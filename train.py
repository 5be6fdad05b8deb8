"""Fine-tune a Vision Transformer and watch what it looks at.

python train.py                                        # configs/digits.yaml: embedded data, embedded weights
python train.py --config configs/digits.yaml --model.lr 0.0005 --trainer.max_epochs 5
python train.py --ckpt_path runs/digits/version_0/checkpoints/last.ckpt    # resume
"""

from pathlib import Path

from litcam.cli import train

if __name__ == "__main__":
    train(default_config=Path(__file__).parent / "configs" / "digits.yaml")
