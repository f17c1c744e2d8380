"""What is made of versions that are there: a whole model, a combination of several, plain LoRA of another method."""
