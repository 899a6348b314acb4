"""Training: batches from clip stores, losses, one step of plain PyTorch, and the Ray Train loop around it."""
