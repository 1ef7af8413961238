"""Hidden states -> logits of the two classes."""
