"""Tool calls as text: the description of a format, its parser, and learning it from a template."""
