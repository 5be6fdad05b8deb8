"""Score the explanations of a checkpoint: methods and metrics on the checkpoint's own data.

python evaluate.py --ckpt_path runs/digits/version_0/checkpoints/best.ckpt
python evaluate.py --ckpt_path … --methods agcam rollout random center --split test
"""

from litcam.cli import evaluate

if __name__ == "__main__":
    evaluate()
