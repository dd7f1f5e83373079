"""What a frontend does with prompts, messages, images and texts. No dialect."""
