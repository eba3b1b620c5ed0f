"""What the core can be read without: LoRA, weights in bfloat16, TensorBoard, data larger than memory."""
