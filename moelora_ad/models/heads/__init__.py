"""Classifiers: from hidden states to logits of the two classes."""
