"""peft's files of LoRA, read and written."""
