"""The page for a browser: a chat, embeddings, and the server's live numbers."""
