"""litcam: fine-tune Vision Transformers with PyTorch Lightning and watch what they look at."""
