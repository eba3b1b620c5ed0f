"""Part 4: supervised fine-tuning of the base model on hand-picked (context, response) pairs."""
