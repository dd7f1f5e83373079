"""Chats: conversations with tools as prompts of the served model, and its replies as messages."""
