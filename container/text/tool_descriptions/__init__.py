"""Descriptions of tools in prompts, in forms that chat templates render."""
