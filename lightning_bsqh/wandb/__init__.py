"""What Weights & Biases needs: its key, its workspace."""
