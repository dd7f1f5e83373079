"""vLLM's chats in batches."""
