"""What Weights & Biases shows: its key, its workspace, its images."""
