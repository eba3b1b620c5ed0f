"""Part 3: a small Llama-style Transformer, pretrained on synthetic retail documents."""
