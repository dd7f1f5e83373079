"""Earlier messages: fitted into what a chat template renders, so that nothing of them is lost."""
